"""Captions and labels, as the command line gives them and as a model reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from ldm.conditioning.text import Tokenizer
from ldm.config import ConfigError
from ldm.data.listing import utf8_text
from ldm.log import log

__all__ = ["Item", "batch_of", "captioned", "labelled", "read_captions"]

# what one image is drawn from: its seed, and entries by the names that the model reads them by
Item = dict[str, Any]

Script = Literal["scripts/sample.py", "scripts/txt2img.py"]


def captioned(model: Any, captions: Sequence[str]) -> list[Item]:
    """An item of each caption.

    Raises ConfigError for a model that does not draw from captions alone.
    """
    _require_drawn_by("scripts/txt2img.py", model)
    model.conditioner.prepare()
    _tell_of_cuts(model, captions)
    return [{part.key: caption for part in model.conditioner.parts} for caption in captions]


def _tell_of_cuts(model: Any, captions: Sequence[str]) -> None:
    """Warn of captions that are longer than an encoder takes, which reads their beginning only."""
    for part in model.conditioner.parts:
        tokenizer = getattr(part.embedder, "tokenizer", None)
        if isinstance(tokenizer, Tokenizer):
            limit = tokenizer.max_length
            for caption in dict.fromkeys(captions):
                if (count := tokenizer.count(caption)) > limit:
                    message = "%r has %d tokens, of which %s reads the first %d"
                    log.warning(message, caption, count, type(part.embedder).__name__, limit)


def labelled(
    model: Any, classes: Sequence[int] | None, each: int, flag: str = "--classes"
) -> list[Item]:
    """`each` items of every class; of no class for an unconditional model.

    Raises ConfigError when the model needs what is not given, or the other way round, and for one
    that does not draw from one entry of labels.
    """
    _require_drawn_by("scripts/sample.py", model)
    parts = model.conditioner.parts
    if not parts:
        if classes is None:
            return [{} for _ in range(each)]
        raise ConfigError(f"{flag} {_spaced(classes)}: this model was trained without classes")
    key, last = parts[0].key, min(part.embedder.null_label for part in parts)
    if classes is None:
        raise ConfigError(f"{flag} is needed: labels 0 to {last}, of {key}")
    if not all(0 <= label <= last for label in classes):
        raise ConfigError(f"{flag} {_spaced(classes)}: expected labels 0 to {last}")
    return [{key: label} for label in classes for _ in range(each)]


def batch_of(model: Any, items: Sequence[Item]) -> dict[str, Any] | None:
    """What the model reads of some items, as a batch of the data holds it; None for nothing."""
    batch: dict[str, Any] = {}
    for key in {part.key for part in model.conditioner.parts}:
        values = [item[key] for item in items]
        is_label = isinstance(values[0], int)
        batch[key] = torch.tensor(values, device=model.device) if is_label else values
    return batch or None


def _require_drawn_by(script: Script, model: Any) -> None:
    """Raise ConfigError unless this script gives a model all that it draws from."""
    parts = model.conditioner.parts
    kinds = {part.embedder.reads for part in parts}
    drawn_by = "`model.sample` from Python (docs/sampling.md)"
    if kinds == {"text"}:
        drawn_by = "scripts/txt2img.py"
    elif not parts or (kinds == {"label"} and len({part.key for part in parts}) == 1):
        drawn_by = "scripts/sample.py"
    if drawn_by != script:
        entries = [f"{part.key} ({type(part.embedder).__name__})" for part in parts]
        given = " and ".join(entries) or "nothing"
        raise ConfigError(f"this model draws from {given}; draw it with {drawn_by}")


def _spaced(values: Sequence[int]) -> str:
    return " ".join(map(str, values))


def read_captions(prompts: Sequence[str], path: str | None) -> list[str]:
    """Captions of the command line, then those of a file, one per line; ConfigError for none."""
    captions = list(prompts)
    if path is not None:
        if not Path(path).is_file():
            raise ConfigError(f"--from-file {path}: no such file")
        lines = utf8_text(Path(path)).splitlines()
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise ConfigError(f"--from-file {path}: holds no captions, one of which fills a line")
        captions += found
    if not captions:
        raise ConfigError("no captions: give --prompt TEXT or --from-file TXT")
    return captions
