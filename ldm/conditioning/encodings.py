"""What encoders have made of captions, so that each set of captions is encoded once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.conditioning.base import Embedder
from ldm.tensor import sent_to

__all__ = ["Encodings"]

Key = tuple[Embedder, tuple[str, ...]]


class Encodings:
    """Captions encoded once however often they stand in a batch, and in however many batches.

    The distinct captions of a batch are encoded together, and the result is remembered under all
    of them: the last bits of a condition depend on what it was encoded beside, so that what a batch
    is drawn from never depends on the batches before it.

    For one model whose weights do not change, in one precision.

    limit: sets of captions that are kept, those used last.
    """

    def __init__(self, limit: int = 4) -> None:
        """Nothing is known yet."""
        self.limit = limit
        self._known: OrderedDict[Key, Tensor] = OrderedDict()

    def of(self, embedder: Embedder, value: Any) -> Tensor:
        """What the encoder makes of a batch entry, (B, ...); what is no text it simply encodes."""
        if not _is_text(value):
            return embedder.encode(value)
        distinct = tuple(dict.fromkeys(value))
        encoded = self._encoded(embedder, distinct)
        if len(distinct) == len(value):
            return encoded
        place = {caption: row for row, caption in enumerate(distinct)}
        rows = torch.tensor([place[caption] for caption in value])
        return encoded.index_select(0, sent_to(rows, encoded.device))

    def _encoded(self, embedder: Embedder, distinct: tuple[str, ...]) -> Tensor:
        key = (embedder, distinct)
        if key not in self._known:
            self._known[key] = embedder.encode(list(distinct))
        self._known.move_to_end(key)
        while len(self._known) > self.limit:
            self._known.popitem(last=False)
        return self._known[key]


def _is_text(value: Any) -> bool:
    is_listed = isinstance(value, Sequence) and not isinstance(value, str)
    return is_listed and len(value) > 0 and all(isinstance(entry, str) for entry in value)
