"""Classifier-free guidance (arXiv:2207.12598)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.moment import current_moment
from ldm.guidance.contrast import Contrast
from ldm.types import Conditioning, Prediction

__all__ = ["ClassifierFree"]


@dataclass(frozen=True)
class ClassifierFree(Contrast):
    """eps = eps_u + scale (eps_c - eps_u), from one batch of 2B, the unconditional half first.

    scale: 1 is the condition alone and 0 none, each one pass of B; larger values follow the
    condition further. A number, or one per example as a tensor (B,).
    null: what "no condition" is, for B examples or for 1; a negative prompt is a null of its own.
    """

    denoiser: Denoiser
    scale: float | Tensor
    null: Conditioning

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Prediction:
        """Guided prediction (x0, eps), both (B, C, H, W); ValueError without a condition."""
        _required(cond)
        return super().__call__(x_t, t, cond)

    def pair(
        self, x_t: Tensor, t: Tensor, cond: Conditioning | None
    ) -> tuple[Prediction, Prediction]:
        """Predictions with the condition and without; ValueError without a condition."""
        both = self.denoiser(
            torch.cat([x_t, x_t]),
            torch.cat([t, t]),
            self._both(_required(cond), len(x_t)),
        )
        x0_u, x0_c = both.x0.chunk(2)
        eps_u, eps_c = both.eps.chunk(2)
        return Prediction(x0=x0_c, eps=eps_c), Prediction(x0=x0_u, eps=eps_u)

    def strong_alone(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Prediction:
        """Prediction with the condition; ValueError without one."""
        return self.denoiser(x_t, t, _required(cond))

    def weak_alone(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Prediction:
        """Prediction without the condition."""
        return self.denoiser(x_t, t, self._null(len(x_t)))

    def _both(self, cond: Conditioning, batch_size: int) -> Conditioning:
        """The condition of both halves; in a run, whose condition stays the same, joined once."""
        moment = current_moment()
        joined: tuple[Conditioning, Conditioning] | None = None
        if moment is not None:
            joined = moment.memory.recall(self)
        if joined is None or joined[0] is not cond:
            joined = cond, Conditioning.cat([self._null(batch_size), cond])
            if moment is not None:
                moment.memory.keep(self, joined)
        return joined[1]

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


def _required(cond: Conditioning | None) -> Conditioning:
    if cond is None:
        raise ValueError("guidance needs a condition to follow, got None")
    return cond
