"""Corrections of a prediction before a sampler uses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.parameterization import to_prediction
from ldm.diffusion.schedule import Schedule
from ldm.guidance.contrast import with_x0
from ldm.tensor import expand_to
from ldm.types import Conditioning, Prediction

__all__ = ["Clipped", "Corrected", "Quantized", "Thresholded"]


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
class Thresholded:
    """Dynamic thresholding of x0 (Imagen, arXiv:2205.11487): clamped to its own range, then scaled.

    With s = max(limit, `percentile` of |x0|), per image over (C, H, W), x0 is clamped to [-s, s]
    and multiplied by limit / s: strong guidance does not saturate pixels as `Clipped` does. An
    image within the limit is not changed.

    percentile: in (0, 1], as a fraction.  limit: above 0: 1 for images, for latents about the
    largest value that they take.
    """

    denoiser: Denoiser
    schedule: Schedule
    percentile: float = 0.995
    limit: float = 1.0

    def __post_init__(self) -> None:
        """Refuse numbers outside of their ranges."""
        if not 0 < self.percentile <= 1:
            raise ValueError(f"percentile is {self.percentile}, expected above 0 and at most 1")
        if not self.limit > 0:
            raise ValueError(f"limit is {self.limit}, expected a number above 0")

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Prediction:
        """Prediction with thresholded x0 and the eps that agrees with it, both (B, C, H, W)."""
        prediction = self.denoiser(x_t, t, cond)
        x0 = prediction.x0
        bound = expand_to(self._percentile(x0.abs().flatten(1)).clamp(min=self.limit), x0)
        return with_x0(prediction, x0.clamp(-bound, bound) * (self.limit / bound), self.schedule, t)

    def _percentile(self, values: Tensor) -> Tensor:
        """Of each row of (B, N), linear between its elements: (B,)."""
        # torch.quantile takes no half precision and no rows of more than 2^24
        rank = self.percentile * (values.shape[1] - 1)
        below = int(rank)
        ordered = values.sort(dim=1).values
        above = min(below + 1, values.shape[1] - 1)
        return ordered[:, below].lerp(ordered[:, above], rank - below)


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
