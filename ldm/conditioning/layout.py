"""Layouts to tokens to vectors: what a layout-to-image model is told (paper, section 4.3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ldm.conditioning.base import Embedder, Reads
from ldm.conditioning.text import TransformerEmbedder
from ldm.config import ConfigError
from ldm.data.layouts import require_layout
from ldm.log import log
from ldm.ranges import Positive
from ldm.tensor import sent_to

__all__ = ["LayoutEmbedder", "LayoutReader", "LayoutTokens", "require_layouts"]

_PER_OBJECT = 3  # tokens: its class, its first corner, its last corner


@dataclass(frozen=True)
class LayoutTokens:
    """Layouts as sequences of tokens: class, top left and bottom right corner of each object.

    A corner is the cell that it lies in, of a grid of `sections` x `sections` over the picture:
    round(x (sections - 1)) + sections round(y (sections - 1)), counted from `first_cell`. Classes
    are their labels. The rest of a sequence is filled with `none`.

    max_objects: of more, the largest are kept, in their order.
    with_crop: two more tokens at the end say which part of the picture is seen: here all of it.
    num_classes: labels are below it.
    """

    num_classes: int
    sections: int
    first_cell: int
    none: int
    max_objects: int = 30
    with_crop: bool = False

    @staticmethod
    def separate(num_classes: int, vocab_size: int, max_objects: int) -> LayoutTokens:
        """Tokens of which none is both a class and a cell, which share the vocabulary.

        Raises ValueError where that leaves no grid.
        """
        sections = isqrt(max(vocab_size - num_classes - 1, 0))
        if sections < 2:
            raise ValueError(
                f"vocab_size: {vocab_size}; expected at least {num_classes + 5}: num_classes, four "
                "cells and none"
            )
        return LayoutTokens(num_classes, sections, num_classes, vocab_size - 1, max_objects)

    @staticmethod
    def published(vocab_size: int, length: int, num_classes: int | None = None) -> LayoutTokens:
        """Tokens of the published models, of which 8192 of length 92 say 30 objects and the crop.

        A class and a cell of one number share a token.
        Raises ValueError for a length that no number of objects has, with the crop or without.
        """
        max_objects, rest = divmod(length, _PER_OBJECT)
        if rest == 1 or max_objects == 0:
            raise ValueError(f"max_seq_len: {length}; expected 3 tokens of each object, and 2 or 0")
        known = vocab_size - 1 if num_classes is None else num_classes
        if known >= vocab_size:
            raise ValueError(f"num_classes: {known}; expected less than vocab_size, {vocab_size}")
        sections = isqrt(vocab_size)
        return LayoutTokens(known, sections, 0, vocab_size - 1, max_objects, with_crop=rest == 2)

    @property
    def length(self) -> int:
        """Number of tokens of a layout."""
        return _PER_OBJECT * self.max_objects + 2 * self.with_crop

    def __call__(self, layouts: Sequence[Tensor]) -> Tensor:
        """Layouts of a batch, (N, 5) each: label, left, top, width, height, to tokens (B, length).

        Raises ValueError for an object that is none, as `require_layouts` does; away from the CPU a
        label out of range becomes the token -1, which no table has.
        """
        kept = [self._largest(layout) for layout in layouts]
        require_layouts(layouts, self.num_classes)
        tokens = torch.split(self._tokens(torch.cat(kept)), [len(layout) for layout in kept])
        empty = tokens[0].new_full((self.max_objects, _PER_OBJECT), self.none)
        filled = pad_sequence([*tokens, empty], batch_first=True, padding_value=self.none)[:-1]
        if not self.with_crop:
            return filled.flatten(1)
        corners = (self.first_cell, self.first_cell + self.sections**2 - 1)
        crop = [filled.new_full((len(filled), 1), corner) for corner in corners]
        return torch.cat([filled.flatten(1), *crop], dim=1)

    def _largest(self, layout: Tensor) -> Tensor:
        if len(layout) <= self.max_objects:
            return layout
        areas = layout[:, 3] * layout[:, 4]
        order = areas.argsort(descending=True, stable=True)[: self.max_objects]
        return layout[order.sort().values]

    def _tokens(self, objects: Tensor) -> Tensor:
        """Objects (N, 5) as tokens (N, 3)."""
        objects = objects.double()
        labels, corner, size = objects[:, 0].long(), objects[:, 1:3], objects[:, 3:]
        is_known = (labels >= 0) & (labels < self.num_classes)
        classes = torch.where(is_known, labels, -1)
        return torch.stack([classes, self._cells(corner), self._cells(corner + size)], dim=1)

    def _cells(self, corners: Tensor) -> Tensor:
        """Positions (N, 2), x and y in [0, 1], as tokens (N,)."""
        x, y = (corners.clamp(0, 1) * (self.sections - 1)).round().long().unbind(1)
        return self.first_cell + x + self.sections * y


def require_layouts(layouts: Sequence[Tensor], num_classes: int) -> None:
    """Raise ValueError for an object of a batch's layouts, (N, 5) each, that is none.

    It is looked for on the CPU alone; elsewhere the device would have to be waited for.
    """
    for index, layout in enumerate(layouts):
        if layout.device.type == "cpu":
            try:
                require_layout(layout.numpy(), num_classes)
            except ValueError as error:
                raise ValueError(f"layout {index} of the batch: {error}") from error


class LayoutReader(Embedder):
    """An encoder of a batch entry of B layouts, (N, 5) each; its null is the empty layout.

    num_classes: labels are below it.
    """

    reads: Reads = "layout"
    num_classes: int

    def require_classes(self, classes: int, path: str = "cond_stage_config") -> None:
        """Raise ConfigError unless so many classes of the data are told apart.

        path: of this encoder in the configuration, which the error names.
        """
        if self.num_classes < classes:
            raise ConfigError(
                f"{path}.params.num_classes: {self.num_classes}, but the data has {classes} "
                f"classes (data.params.train); expected at least {classes}"
            )

    def drop(self, value: Any, dropped: Tensor) -> Any:
        """Layouts with the dropped ones empty."""
        pairs = zip(value, dropped.tolist(), strict=True)
        return [layout[:0] if gone else layout for layout, gone in pairs]


class LayoutEmbedder(LayoutReader, TransformerEmbedder):
    """Layouts to vectors with a small transformer, trained with the UNet (Table 17 of the paper).

    Reads a batch entry of B layouts, (N, 5) each: class label, left, top, width and height as
    fractions (`ldm.data.layouts`); or of their tokens (B, length). Its parameters
    are those of `BERTEmbedder`.

    n_embed: width D.  n_layer: depth.  num_classes: labels are below it.
    vocab_size: tokens; what classes and the token for none leave is for positions.
    max_objects: of more, the largest are told, which is logged once.
    published: the tokens of the published models, 3 * max_objects + 2 in number; there a class and
        a position of one number share a token. By default they do not: a vector that is learned
        for a class then says nothing about a place.
    drop_rate: share of training examples whose layout is left empty, which is the null layout.

    Raises ValueError for a vocabulary that is too small.
    """

    def __init__(
        self,
        n_embed: Positive,
        n_layer: Positive,
        num_classes: Positive,
        vocab_size: Positive = 8192,
        max_objects: Positive = 30,
        published: bool = False,
        key: str | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        if published:
            tokens = LayoutTokens.published(vocab_size, 3 * max_objects + 2, num_classes)
        else:
            tokens = LayoutTokens.separate(num_classes, vocab_size, max_objects)
        super().__init__(
            n_embed,
            n_layer,
            vocab_size,
            tokens.length,
            key=key,
            drop_rate=drop_rate,
        )
        self.tokens, self.num_classes = tokens, num_classes
        self._has_told = False

    def encode(self, value: Sequence[Tensor] | Tensor) -> Tensor:
        """Layouts (N, 5) of a batch, or their tokens (B, length), to (B, length, D).

        Raises ValueError for an object that is none.
        """
        tokens = value if isinstance(value, Tensor) else self._tokens_of(value)
        return self(sent_to(tokens, self.transformer.token_emb.weight.device))  # type: ignore[no-any-return]

    def _tokens_of(self, layouts: Sequence[Tensor]) -> Tensor:
        longest = max(map(len, layouts))
        if longest > self.tokens.max_objects and not self._has_told:
            self._has_told = True
            message = "a layout has %d objects, of which the largest %d are told (max_objects)"
            log.warning(message, longest, self.tokens.max_objects)
        return self.tokens(layouts)

    def drop(self, value: Sequence[Tensor] | Tensor, dropped: Tensor) -> Any:
        """Layouts with the dropped ones empty; tokens with the dropped rows those of nothing."""
        if not isinstance(value, Tensor):
            return super().drop(value, dropped)
        nothing = self.tokens([torch.empty(0, 5)]).to(value)
        return torch.where(sent_to(dropped, value.device)[:, None], nothing, value)
