"""Boxes with classes to vectors, by their coordinates: what small data learn places from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ldm.conditioning.base import Embedder, Reads, Slot
from ldm.conditioning.layout import largest, tell_of_more
from ldm.config import ConfigError
from ldm.data.layouts import require_layout
from ldm.ranges import NonNegative, Positive
from ldm.tensor import sent_to

__all__ = ["BagOfBoxes", "BoxEmbedder"]


class _Things(nn.Module):
    """An object, its class and its box, as a vector.

    The box is told by sines and cosines of its middle and its sides, 2^k pi times each (GLIGEN,
    arXiv:2301.07093, section 3): near places have near vectors from the first step on, where a
    token for each cell of a grid (`ldm.conditioning.layout`) has to be learned by itself.
    """

    def __init__(self, num_classes: int, width: int, frequencies: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.frequencies = frequencies
        self.classes = nn.Embedding(num_classes, width)
        self.mlp = nn.Sequential(
            nn.Linear(width + 4 * (1 + 2 * frequencies), 2 * width),
            nn.SiLU(),
            nn.Linear(2 * width, width),
        )

    def forward(self, layout: Tensor) -> Tensor:
        """Objects (N, 5), label, left, top, width and height, to (N, D)."""
        sides = layout[:, 3:]
        place = torch.cat([2 * (layout[:, 1:3] + sides / 2) - 1, 2 * sides - 1], dim=1)
        turns = torch.pi * 2 ** torch.arange(self.frequencies, device=place.device)
        angles = (place[..., None] * turns).flatten(1)
        known = self.classes(layout[:, 0].long())
        return self.mlp(torch.cat([known, place, angles.sin(), angles.cos()], dim=1))  # type: ignore[no-any-return]


class _OfBoxes(Embedder):
    """What encoders of a batch entry of B layouts, (N, 5) each, have in common.

    n_embed: width D.  num_classes: labels are below it.  frequencies: of a coordinate's sines.
    drop_rate: share of training examples whose layout is left empty, which is the null layout.
    """

    reads: Reads = "layout"

    def __init__(
        self,
        n_embed: Positive,
        num_classes: Positive,
        frequencies: NonNegative = 4,
        key: str | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(key=key, drop_rate=drop_rate)
        self.embed_dim = n_embed
        self.num_classes = num_classes
        self.things = _Things(num_classes, n_embed, frequencies)

    def require_classes(self, classes: int, path: str = "cond_stage_config") -> None:
        """Raise ConfigError unless so many classes of the data have a vector of their own."""
        if self.num_classes < classes:
            raise ConfigError(
                f"{path}.params.num_classes: {self.num_classes}, but the data has {classes} classes"
            )

    def drop(self, value: Sequence[Tensor], dropped: Tensor) -> list[Tensor]:
        """Layouts with the dropped ones empty."""
        pairs = zip(value, dropped.tolist(), strict=True)
        return [layout[:0] if gone else layout for layout, gone in pairs]

    def _vectors(self, layouts: Sequence[Tensor]) -> list[Tensor]:
        """Of each layout the vectors of its objects, (N, D); ValueError for one that is none."""
        for index, layout in enumerate(layouts):
            if layout.device.type == "cpu":  # elsewhere the device would have to be waited for
                try:
                    require_layout(layout.numpy(), self.num_classes)
                except ValueError as error:
                    raise ValueError(f"layout {index} of the batch: {error}") from error
        device = self.things.classes.weight.device
        objects = self.things(sent_to(torch.cat(list(layouts)).float(), device))
        return list(objects.split([len(layout) for layout in layouts]))


class BoxEmbedder(_OfBoxes):
    """A token to attend to for each object of a layout.

    max_objects: tokens N; of more objects the largest are told, which is logged once. What is left
        of the tokens holds a learned vector for nothing.
    """

    def __init__(
        self,
        n_embed: Positive,
        num_classes: Positive,
        max_objects: Positive = 30,
        frequencies: NonNegative = 4,
        key: str | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(n_embed, num_classes, frequencies, key, drop_rate)
        self.max_objects = max_objects
        self.nothing = nn.Parameter(torch.randn(n_embed))
        self._has_told = False

    def encode(self, value: Sequence[Tensor]) -> Tensor:
        """Layouts (N, 5) of a batch to (B, max_objects, D)."""
        self._has_told = self._has_told or tell_of_more(value, self.max_objects)
        found = self._vectors([largest(layout, self.max_objects) for layout in value])
        filled = [
            torch.cat([each, self.nothing.to(each).expand(self.max_objects - len(each), -1)])
            for each in found
        ]
        return torch.stack(filled)


class BagOfBoxes(_OfBoxes):
    """The sum of a layout's objects as one vector, for a UNet's `adm_in_channels`.

    Added to the time's embedding it reaches every residual block from the first step on, as
    `ldm.conditioning.words.BagOfWords` does for captions.
    """

    slot: Slot = "vector"

    def encode(self, value: Sequence[Tensor]) -> Tensor:
        """Layouts (N, 5) of a batch to (B, D); of an empty one 0."""
        return pad_sequence(self._vectors(value), batch_first=True).sum(dim=1)
