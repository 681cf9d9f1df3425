"""Ancestral sampling of DDPM (arXiv:2006.11239): draw from q(x_s | x_t, x0) at the predicted x0."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from torch import Tensor

from ldm.diffusion.posterior import posterior_coefficients
from ldm.samplers.base import Run, Sampler, StepRule
from ldm.types import Prediction

__all__ = ["Ancestral"]


@dataclass(frozen=True)
class Ancestral(Sampler):
    """Algorithm 2 of the paper, for any subset of the times.

    v: variance of a step, from 0, the posterior's ("fixed small"), to 1, the forward step's, beta
    ("fixed large"), the published v_posterior. The step to clean data adds none.
    temperature: multiplies the added noise.
    """

    v: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a variance outside of the two that it lies between."""
        if not 0 <= self.v <= 1:
            raise ValueError(f"v is {self.v}, expected 0 to 1")

    @property
    def adds_noise(self) -> bool:
        """Always."""
        return True

    def rule(self, run: Run) -> StepRule:
        """Coefficients of x0, eps and noise for every step."""
        alpha, sigma = run.alpha, run.sigma
        signal, direction, noise = [], [], []
        for i in range(run.count):
            of_x_t, of_x0, small, large = posterior_coefficients(
                alpha[i], sigma[i], alpha[i + 1], sigma[i + 1]
            )
            # the mean of_x_t x_t + of_x0 x0, with x_t = alpha x0 + sigma eps
            signal.append(of_x_t * alpha[i] + of_x0)
            direction.append(of_x_t * sigma[i])
            variance = (1 - self.v) * small + self.v * large if sigma[i + 1] else 0.0
            noise.append(self.temperature * sqrt(max(variance, 0.0)))

        def step(i: int, prediction: Prediction) -> tuple[Tensor, Prediction]:
            x = (prediction.x0 * signal[i]).add_(prediction.eps, alpha=direction[i])
            if noise[i]:
                x.add_(run.normal(x, i), alpha=noise[i])
            return x, prediction

        return step
