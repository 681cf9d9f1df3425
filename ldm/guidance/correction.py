"""Corrections of a prediction before a sampler uses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.parameterization import to_prediction
from ldm.diffusion.schedule import Schedule
from ldm.types import Conditioning, Prediction

__all__ = ["Clipped", "Corrected", "Quantized"]


@dataclass(frozen=True)
class Clipped:
    """x0 clamped to [low, high], for data with known limits: images in [-1, 1], never latents."""

    denoiser: Denoiser
    schedule: Schedule
    low: float = -1.0
    high: float = 1.0

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Prediction:
        """Prediction with clipped x0 and the eps that agrees with it, both (B, C, H, W)."""
        x0 = self.denoiser(x_t, t, cond).x0.clamp(self.low, self.high)
        return to_prediction("x0", x0, x_t, *self.schedule.coefficients(t))


@dataclass(frozen=True)
class Quantized:
    """x0 replaced by what a quantizer makes of it, such as its nearest codes.

    quantize: (B, C, H, W) to (B, C, H, W), in the latents' scaled units.
    """

    denoiser: Denoiser
    quantize: Callable[[Tensor], Tensor]

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Prediction:
        """Quantized x0 and the original eps, both (B, C, H, W)."""
        prediction = self.denoiser(x_t, t, cond)
        # published: eps is kept, so the step moves towards the codes without the quantization
        # error entering as noise
        return Prediction(x0=self.quantize(prediction.x0), eps=prediction.eps)


@dataclass(frozen=True)
class Corrected:
    """eps changed by a function, the release's score corrector.

    corrector: (eps, x_t, t, cond) to a new eps (B, C, H, W), such as eps minus the gradient of a
    classifier. Runs with gradients enabled; what the denoiser gave it carries none.
    Raises ValueError for a schedule that ends in pure noise, where a changed eps has no x0.
    """

    denoiser: Denoiser
    schedule: Schedule
    corrector: Callable[[Tensor, Tensor, Tensor, Conditioning | None], Tensor]

    def __post_init__(self) -> None:
        """Refuse a schedule that ends in pure noise."""
        if self.schedule.ends_in_pure_noise:
            raise ValueError(
                f"{type(self.schedule).__name__} ends in pure noise, from which a corrected eps "
                "says nothing about x0: correct x0 instead, in a denoiser of your own"
            )

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Prediction:
        """Prediction with the corrected eps and the x0 that agrees with it, both (B, C, H, W)."""
        eps = self.denoiser(x_t, t, cond).eps
        with torch.enable_grad():
            eps = self.corrector(eps, x_t, t, cond).detach()
        return to_prediction("eps", eps, x_t, *self.schedule.coefficients(t))
