"""Denoise latents larger than a network takes: window by window, blended (`ldm.tiling`)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.tiling import BorderWeights, Weights, Window, tiled_apply
from ldm.types import Conditioning, Prediction

__all__ = ["Tiled"]


@dataclass(frozen=True)
class Tiled:
    """A denoiser applied to overlapping windows of x_t.

    window, stride: (height, width) in latent cells.  weights: of the blend, which sums to one.
    A `concat` condition is cut like x_t, other slots go to every window as they are. Guidance goes
    around this, not inside, so that its null condition is cut too.
    """

    denoiser: Denoiser
    window: tuple[int, int]
    stride: tuple[int, int]
    weights: Weights = field(default_factory=BorderWeights)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Prediction:
        """Prediction (x0, eps), both (B, C, H, W)."""

        def both(crop: Tensor, window: Window) -> Tensor:
            prediction = self.denoiser(crop, t, _cut(cond, window))
            return torch.cat([prediction.x0, prediction.eps], dim=1)

        blended = tiled_apply(
            both, x_t, window=self.window, stride=self.stride, weights=self.weights
        )
        x0, eps = blended.chunk(2, dim=1)
        return Prediction(x0=x0, eps=eps)


def _cut(cond: Conditioning | None, window: Window) -> Conditioning | None:
    if cond is None or cond.concat is None:
        return cond
    return replace(cond, concat=window.of(cond.concat))
