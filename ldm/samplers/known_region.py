"""Inpainting without training for it: hold the known part of a latent while sampling the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.draws import Draws, normal_like
from ldm.diffusion.schedule import Schedule
from ldm.samplers.base import Step
from ldm.types import Conditioning, Prediction

__all__ = ["KnownRegion", "KnownRegionAfterStep", "blend_known", "continued"]


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


def continued(images: Tensor, mask: Tensor) -> Tensor:
    """Images whose hidden part is a smooth continuation of the known one, whatever it was.

    An encoder sees some pixels beyond each latent cell: what is hidden would show in the known
    cells around it. Every hidden pixel becomes the mean of the known ones of the smallest square,
    of a side 2, 4, 8, ..., that holds any.

    images: (B, C, H, W).  mask: (B, 1, H, W), 1 where a pixel is known. Without any it is all 0.
    """
    known, weight = torch.where(mask == 1, images, 0), (mask == 1).to(images)
    filled, is_filled = known, weight
    side = 1
    while side < max(images.shape[2:]):
        side *= 2
        means, share = (_of_squares(each, side) for each in (known, weight))
        more = (share > 0) & (is_filled == 0)
        filled = torch.where(more, means / share.clamp(min=1e-12), filled)  # 0 / 0 is not taken
        is_filled = torch.where(more, 1.0, is_filled)
    return filled


def _of_squares(x: Tensor, side: int) -> Tensor:
    """At every pixel, the mean of the square of this side that it lies in."""
    height, width = x.shape[2:]
    means = F.avg_pool2d(x, side, ceil_mode=True)
    return means.repeat_interleave(side, 2).repeat_interleave(side, 3)[..., :height, :width]


def blend_known(x: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    """`known` where the mask (B, 1, H, W) is 1, x where it is 0; both (B, C, H, W)."""
    return torch.lerp(x, known, mask)
