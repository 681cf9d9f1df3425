"""A batch as training has it, in shapes, made of one sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.cli.report.tracing import Trace
from ldm.data.loader import RAGGED, collate

__all__ = ["entries_made_up", "shaped_batch"]

_PICTURE = 2  # dimensions from which an entry is large enough to be counted


def shaped_batch(model: Any, sample: Mapping[str, Any], size: int, trace: Trace) -> dict[str, Any]:
    """So many copies of a sample, collated; large entries are shapes, counted by the trace.

    Captions become token ids where an encoder reads them, so that no tokenizer is needed. Small
    entries keep their values: labels and boxes are looked at on the CPU.
    """
    sample = {**sample, **entries_made_up(model, sample)}
    (batch,) = [collate([sample])]
    made = {key: _several(key, value, size, trace) for key, value in batch.items()}
    for part in getattr(getattr(model, "conditioner", None), "parts", ()):
        if part.embedder.reads == "text":
            made[part.key] = torch.zeros(size, _num_tokens(part.embedder), dtype=torch.int64)
    made["sample_id"] = list(range(size))
    return made


def _several(key: str, value: Any, size: int, trace: Trace) -> Any:
    if isinstance(value, list):
        return value * size
    if key in RAGGED or not isinstance(value, Tensor):
        return value
    if value.ndim <= _PICTURE or _holds_labels(value):
        return value.expand(size, *value.shape[1:]).clone()
    return torch.empty(size, *value.shape[1:], dtype=value.dtype, device=trace.device)


def _holds_labels(value: Tensor) -> bool:
    """Whether an entry holds labels, which encoders look at, rather than colours."""
    return not (value.is_floating_point() or value.dtype == torch.uint8)


def entries_made_up(model: Any, sample: Mapping[str, Any]) -> dict[str, Any]:
    """Entries that an encoder reads and the sample of a data set that stands in has not."""
    made: dict[str, Any] = {}
    for part in getattr(getattr(model, "conditioner", None), "parts", ()):
        if part.key in sample:
            continue
        if part.embedder.reads == "neighbours":
            made[part.key] = torch.zeros(4, part.embedder.embed_dim)
        elif part.embedder.reads == "text":
            made[part.key] = ""
        elif part.embedder.reads == "label":
            made[part.key] = 0
    return made


def _num_tokens(embedder: Any) -> int:
    """Tokens of one caption."""
    inside = getattr(embedder, "transformer", None)
    for holder, name in (
        (inside, "max_seq_len"),
        (embedder, "max_seq_len"),
        (embedder, "max_length"),
    ):
        if isinstance(found := getattr(holder, name, None), int):
            return found
    return 77  # CLIP's, and what captions of the release are cut to
