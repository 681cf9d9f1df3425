"""Codes drawn from logits, differentiably."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.nets.quantizer_base import Quantizer, straight_through
from ldm.ranges import Positive, Weight

__all__ = ["CosineAnnealing", "GumbelQuantizer", "to_gumbel"]


@dataclass(frozen=True)
class CosineAnnealing:
    """Temperature by optimizer step: half a cosine from `start` to `end`, which then stays.

    steps: that it takes. The defaults are DALL-E's (arXiv:2102.12092, appendix A.2).
    Raises ValueError for a temperature of 0.
    """

    start: Weight = 1.0
    end: Weight = 1 / 16
    steps: Positive = 150_000

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if (value := getattr(self, name)) <= 0:
                raise ValueError(f"{name}={value}: a temperature is above 0")

    def __call__(self, step: int) -> float:
        """Temperature at a step, counted from 0."""
        share = min(step / self.steps, 1.0)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * share)) / 2


class GumbelQuantizer(Quantizer):
    """Codes drawn from logits by the Gumbel-softmax (arXiv:1611.01144), as in DALL-E.

    A projection (1 x 1) of the latent gives logits over the K codes. In training the sample is
    y = softmax((logits + Gumbel noise) / temperature) and the latent becomes y E, E the codebook
    `embedding.weight`; with `straight_through` the forward value is the code of the largest y. In
    evaluation it is the code of the largest logit. The noise is made of the standard normal numbers
    that `forward` is given; a pass in training without any has no noise.
    The loss is kl_weight KL(softmax(logits) | uniform), in nats, averaged over latent cells.

    temperature: a number above 0, or a `CosineAnnealing`.
    Takes memory for several tensors (B, h, w, K).
    Raises ValueError for a temperature of 0.
    """

    def __init__(
        self,
        n_e: Positive,
        e_dim: Positive,
        *,
        temperature: Weight | CosineAnnealing = 1.0,
        straight_through: bool = True,
        kl_weight: Weight = 5e-4,
        sane_index_shape: bool = False,
    ) -> None:
        super().__init__(n_e, e_dim, sane_index_shape=sane_index_shape)
        if not isinstance(temperature, CosineAnnealing):
            if temperature <= 0:
                raise ValueError(f"temperature={temperature}: expected a number above 0")
            temperature = CosineAnnealing(temperature, temperature)
        self.annealing = temperature
        self.temperature = temperature(0)
        self.straight_through = straight_through
        self.kl_weight = kl_weight
        self.projection = nn.Linear(e_dim, n_e)
        self.embedding = nn.Embedding(n_e, e_dim)

    def noise_shape(self, z: Tensor) -> tuple[int, ...] | None:
        """(h, w, K) in training."""
        return (*z.shape[2:], self.num_codes) if self.training else None

    def begin_step(self, step: int, seed: int = 0) -> None:
        """Take the temperature of this optimizer step."""
        self.temperature = self.annealing(step)

    def _quantize(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, loss = self._logits(z)
        if self.training:
            return self._sampled(logits, loss)
        indices = logits.argmax(dim=-1)
        return self._entries(indices), loss, indices

    def _draw(self, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.training:
            return super()._draw(z, noise)
        logits, loss = self._logits(z)
        return self._sampled(logits + to_gumbel(noise), loss)

    def _logits(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, h, w, K) of latents, and the loss ()."""
        layer = self.projection
        logits = F.linear(z, layer.weight.float(), layer.bias.float())
        log_p = F.log_softmax(logits, dim=-1)
        divergence = (log_p.exp() * (log_p + math.log(self.num_codes))).sum(dim=-1)
        return logits, self.kl_weight * divergence.mean()

    def _sampled(self, logits: Tensor, loss: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What training makes of logits, with noise or without."""
        sample, indices = F.softmax(logits / self.temperature, dim=-1), logits.argmax(dim=-1)
        if self.straight_through:
            hard = torch.zeros_like(logits).scatter_(-1, indices[..., None], 1.0)
            sample = straight_through(sample, hard)
        return sample @ self.embedding.weight.float(), loss, indices

    def _entries(self, indices: Tensor) -> Tensor:
        codes: Tensor = self.embedding(indices)
        return codes


def to_gumbel(normal: Tensor) -> Tensor:
    """Standard normal numbers as ones of the standard Gumbel distribution: -log(-log Phi(x))."""
    return -torch.log(-torch.special.log_ndtr(normal))
