"""Heun's method of EDM (arXiv:2206.00364), algorithm 1 without added noise."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ldm.samplers.base import Run, Sampler, StepRule
from ldm.samplers.grid import Grid, Karras
from ldm.types import Prediction

__all__ = ["Heun"]


@dataclass(frozen=True)
class Heun(Sampler):
    """Second-order steps of dy / dk = eps, with y = x / alpha and k = sigma / alpha.

    Two evaluations per step, one for the last step to clean data: 2 steps - 1 in all.
    """

    grid: Grid = field(default_factory=Karras)

    def rule(self, run: Run) -> StepRule:
        """An Euler step, then one with the mean of both slopes."""
        alpha, sigma, level = run.alpha, run.sigma, run.level

        def step(i: int, prediction: Prediction) -> tuple[Tensor, Prediction]:
            x0, eps = prediction.x0, prediction.eps
            x = (x0 * alpha[i + 1]).add_(eps, alpha=sigma[i + 1])
            if not sigma[i + 1]:
                return x, prediction
            slope_change = run.denoise(x, i + 1).eps - eps
            x.add_(slope_change, alpha=alpha[i + 1] * (level[i + 1] - level[i]) / 2)
            return x, prediction

        return step
