"""Inpainting without training for it: hold the known part of a latent while sampling the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.draws import Draws, normal_like
from ldm.diffusion.schedule import Schedule
from ldm.samplers.base import Step
from ldm.types import Conditioning, Prediction

__all__ = ["KnownRegion", "KnownRegionAfterStep", "blend_known"]


@dataclass
class KnownRegion:
    """A denoiser that puts the known latents, noised to time t, into x_t before predicting.

    Outermost of all wrappers, because it knows the batch as the sampler does. One per run: it
    counts its evaluations, each of which draws its own noise from stream "known <count>".

    x0: (B, C, H, W) known latents.  mask: (B, 1, H, W), 1 keeps the known value, 0 lets the sampler
    choose.
    """

    denoiser: Denoiser
    schedule: Schedule
    x0: Tensor
    mask: Tensor
    draws: Draws
    count: int = 0

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Prediction:
        """Prediction (x0, eps) at the blended x_t."""
        eps = normal_like(self.draws, x_t, f"known {self.count}")
        self.count += 1
        known = self.schedule.noised(self.x0, eps, t)
        return self.denoiser(blend_known(x_t, known, self.mask), t, cond)


@dataclass(frozen=True)
class KnownRegionAfterStep:
    """A callback that puts the known latents into the state after every step.

    Fields as `KnownRegion`; noise of step i is stream "known <i>".
    """

    schedule: Schedule
    x0: Tensor
    mask: Tensor
    draws: Draws

    def __call__(self, step: Step, x: Tensor, prediction: Prediction) -> Tensor:
        """The state to go on from, (B, C, H, W)."""
        eps = normal_like(self.draws, x, f"known {step.index}")
        # published: the noise level is that of the time just left, so even the final result holds
        # the known part with the noise of time 0
        t = self.schedule.tensor_of(np.array([step.time]), x).expand(len(x))
        return blend_known(x, self.schedule.noised(self.x0, eps, t), self.mask)


def blend_known(x: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    """`known` where the mask (B, 1, H, W) is 1, x where it is 0; both (B, C, H, W)."""
    return torch.lerp(x, known, mask)
