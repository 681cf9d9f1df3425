"""Autoguidance: a model guided by a bad version of itself (arXiv:2406.02507)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.guidance.contrast import Contrast
from ldm.types import Conditioning, Prediction

__all__ = ["Autoguided", "Told"]


@dataclass(frozen=True)
class Autoguided(Contrast):
    """x0 = x0_weak + scale (x0_main - x0_weak), and eps likewise.

    The direction is what the weak model gets wrong, not what the condition adds: it sharpens
    without a loss of variety, and works without a condition.

    denoiser: the main model.
    weak: a smaller or less trained one of the same data and schedule, such as an early checkpoint.
    What it predicts (eps, v, ...) may differ; whose encoders of the condition differ is `Told`.
    scale: 1 is the main model and 0 the weak one, each alone; a number, or a tensor (B,).
    """

    denoiser: Denoiser
    weak: Denoiser
    scale: float | Tensor

    def pair(
        self, x_t: Tensor, t: Tensor, cond: Conditioning | None
    ) -> tuple[Prediction, Prediction]:
        """Predictions of the main model and of the weak one, a pass of B each."""
        return self.denoiser(x_t, t, cond), self.weak(x_t, t, cond)

    def strong_alone(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Prediction:
        """Prediction of the main model."""
        return self.denoiser(x_t, t, cond)

    def weak_alone(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Prediction:
        """Prediction of the weak model."""
        return self.weak(x_t, t, cond)


@dataclass(frozen=True)
class Told:
    """A denoiser that is told one condition, of B examples or none, whatever is asked of it.

    A weak model's encoders are trained with it: what the main model's make of a caption is
    something else.
    """

    denoiser: Denoiser
    cond: Conditioning | None

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Prediction:
        """Prediction under its own condition."""
        return self.denoiser(x_t, t, self.cond)
