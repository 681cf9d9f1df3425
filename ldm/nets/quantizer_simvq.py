"""A codebook that moves as a whole."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.nets.quantizer_base import Quantizer, nearest_codes, rotated, straight_through
from ldm.ranges import Positive, Weight

__all__ = ["SimVQ"]


class SimVQ(Quantizer):
    """Vector quantization with codes C W: C is random and stays, W is a learned d x d matrix.

    SimVQ (arXiv:2411.02038), section 4: a gradient to one code moves all of them, so none is left
    behind. C (`codebook`, a buffer) is drawn from N(0, I / d); W (`projection`, without a bias)
    starts as the identity. The loss is beta |sg(q) - z|^2 + |q - sg(z)|^2, averaged.
    rotation: gradients go back through a rotation instead of straight through, see `rotated`.
    """

    codebook: Tensor

    def __init__(
        self,
        n_e: Positive,
        e_dim: Positive,
        beta: Weight = 0.25,
        *,
        sane_index_shape: bool = False,
        rotation: bool = False,
    ) -> None:
        super().__init__(n_e, e_dim, sane_index_shape=sane_index_shape)
        self.beta = beta
        self.rotation = rotation
        self.register_buffer("codebook", torch.randn(n_e, e_dim) * e_dim**-0.5)
        self.projection = nn.Linear(e_dim, e_dim, bias=False)
        nn.init.eye_(self.projection.weight)

    def codes(self) -> Tensor:
        """The codebook as it is searched, (K, d) float32."""
        return F.linear(self.codebook.float(), self.projection.weight.float())

    def _quantize(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        indices = nearest_codes(z, self.codes().detach())
        q = self._entries(indices)
        to_codes, to_latents = (q.detach() - z).square().mean(), (q - z.detach()).square().mean()
        loss = self.beta * to_codes + to_latents
        return (rotated if self.rotation else straight_through)(z, q), loss, indices

    def _entries(self, indices: Tensor) -> Tensor:
        # only the codes that are asked for go through W
        rows = F.embedding(indices, self.codebook).float()
        return F.linear(rows, self.projection.weight.float())
