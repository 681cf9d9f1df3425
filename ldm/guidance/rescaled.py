"""Rescaled guidance: the contrast of the strong prediction (arXiv:2305.08891)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.parameterization import (
    check_parameterization,
    from_prediction,
    to_prediction,
)
from ldm.diffusion.schedule import Schedule
from ldm.guidance.contrast import Guided, require_guided
from ldm.types import Conditioning, Prediction

__all__ = ["Rescaled"]


@dataclass(frozen=True)
class Rescaled:
    """out <- phi out std(out_strong) / std(out) + (1 - phi) out, section 3.4 of the paper.

    Guidance makes the spread of an image larger than data has, most of all at the noisiest times,
    where the whole picture is overexposed. Deviations are per image, over (C, H, W).

    guidance: `ClassifierFree`, `Autoguided`, or `Projected` around one of them.
    phi: from 0, no rescaling, to 1, exactly the deviation of the strong prediction; 0.7 in the
    paper.
    parameterization: what "out" is, a name of `ldm.diffusion.parameterization`: v as in the paper.
    Raises ValueError for "eps" on a schedule that ends in pure noise, where eps has no x0.
    """

    guidance: Guided
    schedule: Schedule
    phi: float = 0.7
    parameterization: str = "v"

    def __post_init__(self) -> None:
        """Refuse what is not guided, and parameters outside of their ranges."""
        require_guided(self, self.guidance)
        if not 0 <= self.phi <= 1:
            raise ValueError(f"phi is {self.phi}, expected 0 to 1")
        check_parameterization(self.parameterization)
        if self.parameterization == "eps" and self.schedule.ends_in_pure_noise:
            raise ValueError(
                f"{type(self.schedule).__name__} ends in pure noise, from which a rescaled eps "
                "says nothing about x0: rescale v, x0 or flow"
            )

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Prediction:
        """Prediction (x0, eps), both (B, C, H, W)."""
        guided, strong = self.guidance.with_strong(x_t, t, cond)
        if guided is strong or not self.phi:
            return guided
        levels = self.schedule.coefficients(t)
        out = from_prediction(self.parameterization, guided, *levels)
        wanted = _std(from_prediction(self.parameterization, strong, *levels))
        # the deviation of a constant output, which no factor changes
        spread = _std(out).clamp(min=torch.finfo(out.dtype).tiny)
        out = out * (1 + self.phi * (wanted / spread - 1))
        return to_prediction(self.parameterization, out, x_t, *levels)


def _std(out: Tensor) -> Tensor:
    return out.std(dim=(1, 2, 3), keepdim=True)
