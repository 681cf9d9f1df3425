"""Class labels as one token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.conditioning.base import Embedder
from ldm.ranges import Positive
from ldm.tensor import sent_to

__all__ = ["ClassEmbedder"]


class ClassEmbedder(Embedder):
    """A learned vector per class, as a sequence of one token for cross-attention.

    embed_dim: width D of the token; the denoiser's `context_dim`.
    n_classes: rows of the table. With label dropout, one more than there are classes: the last
        row stands for "no class" (as in the published cin256-v2, 1001 rows, null label 1000).
    """

    reads = "label"

    def __init__(
        self,
        embed_dim: Positive,
        n_classes: Positive = 1000,
        key: str = "class",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(key=key, drop_rate=drop_rate)
        if n_classes < 1 + (drop_rate > 0):
            raise ValueError(
                f"n_classes is {n_classes}; expected at least one class"
                + (" and the null class that drop_rate needs" if drop_rate else "")
            )
        self.embed_dim = embed_dim
        self.embedding = nn.Embedding(n_classes, embed_dim)

    @property
    def null_label(self) -> int:
        """The label that stands for "no class": the last row."""
        return self.embedding.num_embeddings - 1

    def encode(self, value: Tensor) -> Tensor:
        """Labels (B,) integer to (B, 1, D)."""
        return self.embedding(value[:, None])  # type: ignore[no-any-return]

    def drop(self, value: Tensor, dropped: Tensor) -> Tensor:
        """Labels (B,) with the dropped ones replaced by the null label."""
        return torch.where(sent_to(dropped, value.device), self.null_label, value)

    def forward(self, batch: Mapping[str, Any], key: str | None = None) -> Tensor:
        """The published call: looks up its key in the whole batch."""
        return self.encode(batch[key or self.key or "class"])
