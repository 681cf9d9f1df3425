"""Neighbours of an image as its condition: retrieval-augmented diffusion (arXiv:2204.11824)."""

from __future__ import annotations

from torch import Tensor

from ldm.conditioning.base import Embedder
from ldm.ranges import Positive

__all__ = ["NeighbourEmbedder"]


class NeighbourEmbedder(Embedder):
    """Embeddings of an image's neighbours as tokens, in no order: xi_k of section 3.2.

    There is nothing to learn, so the published models have `torch.nn.Identity` here and their
    checkpoints load as they are. The null is zeros: cross-attention projects keys and values
    without a bias, so that tokens of zeros add nothing at all, which a learned null would first
    have to learn; and guidance works with any number of tokens.

    embed_dim: width D of the embeddings; the network's `context_dim`.
    scale: factor on the embeddings. A vector of length 1 has entries of about 1 / sqrt(D), and
        sqrt(D) makes them of the size that networks expect, which a short training is glad of. 1 is
        published.
    drop_rate: share of training examples without neighbours, for guidance (section 3.3).
    """

    slots = ("crossattn",)
    reads = "neighbours"

    def __init__(
        self,
        embed_dim: Positive,
        scale: float = 1.0,
        key: str = "neighbours",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(key=key, drop_rate=drop_rate)
        if scale <= 0:
            raise ValueError(f"scale is {scale}; expected a factor above 0")
        self.embed_dim = embed_dim
        self.scale = scale

    def encode(self, value: Tensor) -> Tensor:
        """Embeddings (B, k, D), any k, to (B, k, D)."""
        if value.ndim != 3 or value.shape[2] != self.embed_dim:
            raise ValueError(
                f"{self.key} is of shape {tuple(value.shape)}; expected (B, k, {self.embed_dim}), "
                "embeddings of k neighbours of the width embed_dim"
            )
        return value if self.scale == 1 else value * self.scale
