"""Class labels: as one token, as one vector, or as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldm.conditioning.base import Embedder
from ldm.ranges import Positive
from ldm.tensor import sent_to

__all__ = ["ClassEmbedder", "ClassLabels"]


def _require_rows(n_classes: int, drop_rate: float) -> None:
    if n_classes < 1 + (drop_rate > 0):
        raise ValueError(
            f"n_classes is {n_classes}; expected at least one class"
            + (" and the null class that drop_rate needs" if drop_rate else "")
        )


class ClassEmbedder(Embedder):
    """A learned vector per class, as a sequence of one token for cross-attention.

    embed_dim: width D of the token; the denoiser's `context_dim`.
    slot: "vector" gives the vector itself, for the denoiser's `adm_in_channels`.
    n_classes: rows of the table. With label dropout, one more than there are classes: the last
        row stands for "no class" (as in the published cin256-v2, 1001 rows, null label 1000).
    """

    reads = "label"
    slots = ("crossattn", "vector")

    def __init__(
        self,
        embed_dim: Positive,
        n_classes: Positive = 1000,
        key: str = "class",
        drop_rate: float = 0.0,
        *,
        slot: Literal["crossattn", "vector"] = "crossattn",
    ) -> None:
        super().__init__(key=key, drop_rate=drop_rate)
        _require_rows(n_classes, drop_rate)
        self.slot = slot
        self.embed_dim = embed_dim
        self.embedding = nn.Embedding(n_classes, embed_dim)

    @property
    def null_label(self) -> int:
        """The label that stands for "no class": the last row."""
        return self.embedding.num_embeddings - 1

    def encode(self, value: Tensor) -> Tensor:
        """Labels (B,) integer to (B, 1, D), or to (B, D) for the slot of vectors."""
        labels = value if self.slot == "vector" else value[:, None]
        return self.embedding(labels)  # type: ignore[no-any-return]

    def drop(self, value: Tensor, dropped: Tensor) -> Tensor:
        """Labels (B,) with the dropped ones replaced by the null label."""
        return torch.where(sent_to(dropped, value.device), self.null_label, value)

    def forward(self, batch: Mapping[str, Any], key: str | None = None) -> Tensor:
        """The published call: looks up its key in the whole batch."""
        return self.encode(batch[key or self.key or "class"])


class ClassLabels(Embedder):
    """Class labels as they are, for a network with a table of its own (`num_classes`).

    The published `conditioning_key: adm`: the vector of a class is added to the time's embedding.

    n_classes: rows of the network's table, its `num_classes`. With label dropout, one more than
        there are classes: the last row stands for "no class".
    """

    slot = "vector"
    slots = ("vector",)
    reads = "label"

    def __init__(
        self, n_classes: Positive, key: str = "class_label", drop_rate: float = 0.0
    ) -> None:
        super().__init__(key=key, drop_rate=drop_rate)
        _require_rows(n_classes, drop_rate)
        self.n_classes = n_classes

    @property
    def null_label(self) -> int:
        """The label that stands for "no class": the last row."""
        return self.n_classes - 1

    def encode(self, value: Tensor) -> Tensor:
        """Labels (B,) integer, unchanged."""
        return value

    def drop(self, value: Tensor, dropped: Tensor) -> Tensor:
        """Labels (B,) with the dropped ones replaced by the null label."""
        return torch.where(sent_to(dropped, value.device), self.null_label, value)
