"""Heun's method of EDM (arXiv:2206.00364), algorithms 1 and 2."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ldm.samplers.base import Run, StepRule
from ldm.samplers.churn import Churned
from ldm.types import Prediction

__all__ = ["Heun"]


@dataclass(frozen=True)
class Heun(Churned):
    """Second-order steps of dy / dk = eps, with y = x / alpha and k = sigma / alpha, and churn.

    Two evaluations per step, one for a last step to clean data. A step from pure noise, where k is
    infinite, is one of du / dm = x0, with u = x / sigma and m = alpha / sigma.
    """

    @property
    def convergence_order(self) -> int:
        """Second."""
        return 2

    def evaluations(self, steps: int, *, ends_clean: bool = True) -> int:
        """2 steps, less one if the last ends in clean data."""
        return 2 * steps - ends_clean

    def rule(self, run: Run) -> StepRule:
        """An Euler step, then one with the mean of both slopes."""
        alpha, sigma, raised = run.alpha, run.sigma, self.raised(run)
        change = []
        for i in range(run.count):
            level = raised.get(i, run.sigma[i] / run.alpha[i]) if run.alpha[i] else 0.0
            change.append((sigma[i + 1] - alpha[i + 1] * level) / 2)  # alpha_s (k_s - k) / 2

        def step(i: int, prediction: Prediction) -> tuple[Tensor, Prediction]:
            x0, eps = prediction.x0, prediction.eps
            x = (x0 * alpha[i + 1]).add_(eps, alpha=sigma[i + 1])
            if not sigma[i + 1]:
                return x, prediction
            ahead = run.denoise(x, i + 1)
            if alpha[i]:
                x.add_(ahead.eps - eps, alpha=change[i])
            else:
                x.add_(ahead.x0 - x0, alpha=alpha[i + 1] / 2)
            return x, prediction

        return step
