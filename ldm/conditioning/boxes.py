"""Boxes with classes as a map: what is where, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ldm.conditioning.base import Slot
from ldm.conditioning.layout import LayoutReader, require_layouts
from ldm.data.transforms import side_lengths
from ldm.ranges import Positive
from ldm.tensor import sent_to

__all__ = ["BoxMap"]


class BoxMap(LayoutReader):
    """Layouts as maps of learned vectors: each box paints that of its class over its cells.

    Beside the tokens of a layout (`ldm.conditioning.layout`), which say the same: a network that
    attends to tokens has to learn first which cell lies in which box, from many examples, and is
    here shown it. A cell that a box covers in part has so much of its vector, and where boxes
    overlap their vectors are added. An empty layout is a map of 0, which is the null as well.

    Reads a batch entry of B layouts, (N, 5) each: class label, left, top, width and height as
    fractions (`ldm.data.layouts`).

    n_embed: width D of the vectors, channels of the map.  num_classes: labels are below it.
    size: of the map in latent cells, a side or [height, width].
    drop_rate: share of training examples whose layout is left empty.
    """

    slot: Slot = "concat"
    slots = ("concat",)

    def __init__(
        self,
        n_embed: Positive,
        num_classes: Positive,
        size: Positive | Sequence[Positive],
        key: str | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(key=key, drop_rate=drop_rate)
        self.embed_dim = n_embed
        self.num_classes = num_classes
        self.height, self.width = side_lengths(size)
        self.classes = nn.Embedding(num_classes, n_embed)

    def encode(self, value: Sequence[Tensor]) -> Tensor:
        """Layouts (N, 5) of a batch to (B, D, height, width).

        Raises ValueError for an object that is none, as `require_layouts` does.
        """
        require_layouts(value, self.num_classes)
        device = self.classes.weight.device
        objects = sent_to(pad_sequence(list(value), batch_first=True).float(), device)
        across = _covered(objects[..., 1], objects[..., 3], self.width)
        down = _covered(objects[..., 2], objects[..., 4], self.height)
        # what fills shorter layouts covers nothing
        vectors = self.classes(objects[..., 0].long())
        return torch.einsum("bny,bnx,bnd->bdyx", down, across, vectors)


def _covered(start: Tensor, length: Tensor, cells: int) -> Tensor:
    """Which share of each of so many cells lies between start and start + length, (..., cells)."""
    edges = torch.arange(cells, device=start.device) / cells
    first = torch.maximum(start[..., None], edges)
    last = torch.minimum((start + length)[..., None], edges + 1 / cells)
    return (last - first).clamp(min=0) * cells
