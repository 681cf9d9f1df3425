"""Vectors of the batch, such as embeddings made beforehand, as a condition."""

from __future__ import annotations

from torch import Tensor, nn

from ldm.conditioning.base import Embedder
from ldm.ranges import Positive

__all__ = ["VectorEmbedder"]


class VectorEmbedder(Embedder):
    """A vector of each example, for a UNet's `adm_in_channels`: as it is, or mapped linearly.

    The null is zero, before and after the map, which has no bias: an entry for which zero means
    something should be shifted in the data.

    in_dim: width of the entry.  embed_dim: width that a learned matrix maps it to; None for none.
    """

    slot = "vector"
    slots = ("vector",)

    def __init__(
        self,
        in_dim: Positive,
        embed_dim: Positive | None = None,
        key: str | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(key=key, drop_rate=drop_rate)
        self.in_dim = in_dim
        self.embed_dim = in_dim if embed_dim is None else embed_dim
        if embed_dim is not None:
            self.projection = nn.Linear(in_dim, embed_dim, bias=False)

    def encode(self, value: Tensor) -> Tensor:
        """Vectors (B, in_dim), floating point, to (B, D).

        Raises ValueError for another shape.
        """
        if value.ndim != 2 or value.shape[1] != self.in_dim:
            raise ValueError(
                f"vectors of shape {tuple(value.shape)}; expected (B, {self.in_dim}), as in_dim "
                "says"
            )
        return self.projection(value) if hasattr(self, "projection") else value
