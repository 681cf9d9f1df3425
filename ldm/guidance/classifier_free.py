"""Classifier-free guidance (arXiv:2207.12598)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.tensor import expand_to
from ldm.types import Conditioning, Prediction

__all__ = ["ClassifierFree"]


@dataclass(frozen=True)
class ClassifierFree:
    """eps = eps_u + scale (eps_c - eps_u), from one batch of 2B, the unconditional half first.

    scale: 1 is the condition alone and 0 none, each one pass of B; larger values follow the
    condition further. A number, or one per example as a tensor (B,).
    null: what "no condition" is, for B examples or for 1.
    """

    denoiser: Denoiser
    scale: float | Tensor
    null: Conditioning

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Prediction:
        """Guided prediction (x0, eps), both (B, C, H, W); ValueError without a condition."""
        if cond is None:
            raise ValueError("guidance needs a condition to follow, got None")
        if not isinstance(self.scale, Tensor) and self.scale in (0, 1):
            return self.denoiser(x_t, t, cond if self.scale else self._null(len(x_t)))
        both = self.denoiser(
            torch.cat([x_t, x_t]),
            torch.cat([t, t]),
            Conditioning.cat([self._null(len(x_t)), cond]),
        )
        # x0 is linear in eps at a given x_t, so guiding both keeps them consistent
        return Prediction(x0=self._guided(both.x0), eps=self._guided(both.eps))

    def _guided(self, both: Tensor) -> Tensor:
        unconditional, conditional = both.chunk(2)
        if isinstance(self.scale, Tensor):
            return unconditional.lerp(conditional, expand_to(self.scale, conditional).to(both))
        return unconditional.lerp(conditional, self.scale)

    def _null(self, batch_size: int) -> Conditioning:
        if self.null.batch_size == batch_size:
            return self.null
        slots = self.null.slots()
        if any(len(value) != 1 for value in slots.values()):
            raise ValueError(
                f"null is for {self.null.batch_size} examples, expected 1 or {batch_size}"
            )
        return Conditioning(
            **{name: value.expand(batch_size, *value.shape[1:]) for name, value in slots.items()}
        )
