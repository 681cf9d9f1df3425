"""A codebook that follows the means of its latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.nets.quantizer import CodebookQuantizer, Cures
from ldm.nets.quantizer_cures import sums_by_code
from ldm.ranges import Positive, Weight
from ldm.ranks import sum_over_ranks

__all__ = ["EMAVectorQuantizer"]


class EMAVectorQuantizer(CodebookQuantizer):
    """Vector quantization whose codes are moving averages of the latents they are nearest to.

    Appendix A.1 of VQ-VAE (arXiv:1711.00937), section 2.1 of VQ-VAE-2 (arXiv:1906.00446). After
    each optimizer step, with n_i latents of sum s_i nearest to code i, over all ranks and passes,

        N_i <- decay N_i + (1 - decay) n_i,   m_i <- decay m_i + (1 - decay) s_i,   e_i = m_i / N'_i

    with N' = (N + epsilon) / (sum N + K epsilon) sum N (Laplace smoothing). A code with N below
    epsilon stays where it is, as the smoothing would draw it to the origin. At first N = 1 and
    m = e. The loss is beta |sg(q) - z|^2, averaged; the codebook has no gradient and no optimizer.
    `embedding.weight` (K, d), `cluster_size` (K,) and `cluster_sum` (K, d) are buffers. A state
    dict with the first alone, of codes that had a gradient, will do; the averages begin with these.

    l2_norm, rotation, kmeans_init, restart: see `CodebookQuantizer`.  sane_index_shape: see
    `Quantizer`.

    The default cure, suggested for new trainings, is this class with 8 channels or fewer, l2_norm
    and restart:

        embed_dim: 8
        n_embed: 16384
        quantizer_config:
          target: ldm.nets.quantizer_ema.EMAVectorQuantizer
          params: {n_e: 16384, e_dim: 8, l2_norm: true, restart: true}

    Raises ValueError for a decay outside [0, 1) or an epsilon of 0.
    """

    cluster_size: Tensor
    cluster_sum: Tensor

    def __init__(
        self,
        n_e: Positive,
        e_dim: Positive,
        beta: Weight = 0.25,
        *,
        decay: Weight = 0.99,
        epsilon: Weight = 1e-5,
        sane_index_shape: bool = False,
        **cures: Unpack[Cures],
    ) -> None:
        super().__init__(n_e, e_dim, sane_index_shape=sane_index_shape, **cures)
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: expected at least 0 and less than 1")
        if epsilon <= 0:
            raise ValueError(f"epsilon={epsilon}: expected a number above 0")
        self.beta, self.decay, self.epsilon = beta, decay, epsilon
        codes = torch.randn(n_e, e_dim)
        if self.l2_norm:
            codes = F.normalize(codes, dim=1)
        self.embedding = nn.Module()
        self.embedding.register_buffer("weight", codes)
        self.register_buffer("cluster_size", torch.ones(n_e))
        self.register_buffer("cluster_sum", codes.clone())
        self._moments: Tensor | None = None  # (K, 1 + d), n and s of this step's passes

    def completed(self, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """A state dict with averages, which of a codebook alone are those of the beginning."""
        completed, codes = super().completed(state, prefix), state.get(f"{prefix}embedding.weight")
        names = [f"{prefix}cluster_{kind}" for kind in ("size", "sum")]
        if codes is not None and not any(name in state for name in names):
            sums = F.normalize(codes.float(), dim=1) if self.l2_norm else codes.float().clone()
            sizes = torch.ones(len(codes), device=codes.device)
            completed |= dict(zip(names, (sizes, sums), strict=True))
        return completed

    @property
    def _codebook(self) -> Tensor:
        return self.embedding.get_buffer("weight")

    def _loss(self, z: Tensor, q: Tensor) -> Tensor:
        return self.beta * (q.detach() - z).square().mean()

    def _observe(self, z: Tensor, indices: Tensor, codes: Tensor) -> None:
        super()._observe(z, indices, codes)
        if not self._collects:
            counts, sums = sums_by_code(z, indices, self.num_codes)
            moments = torch.cat([counts[:, None], sums], dim=1)
            self._moments = moments if self._moments is None else self._moments + moments

    @torch.no_grad()
    def end_step(self) -> None:
        """Move the averages and with them the codes, then restart those that are dead."""
        if self._moments is not None:
            moments, self._moments = sum_over_ranks(self._moments), None
            self.cluster_size.lerp_(moments[:, 0], 1 - self.decay)
            self.cluster_sum.lerp_(moments[:, 1:], 1 - self.decay)
            total = self.cluster_size.sum()
            smooth = (self.cluster_size + self.epsilon) * (
                total / (total + self.num_codes * self.epsilon)
            )
            codes = self.cluster_sum / smooth[:, None]
            if self.l2_norm:
                codes = F.normalize(codes, dim=1)
            is_known = self.cluster_size >= self.epsilon
            super()._replace(codes, is_known)
        super().end_step()

    def _replace(self, codes: Tensor, which: Tensor) -> None:
        super()._replace(codes, which)
        self.cluster_size.masked_fill_(which, 1.0)
        self.cluster_sum.copy_(torch.where(which[:, None], codes, self.cluster_sum))
