"""Euler's method, with noise added before a step or after it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ldm.ranges import Weight
from ldm.samplers.base import Run, Sampler, StepRule
from ldm.samplers.churn import Churned
from ldm.samplers.ddim import DDIM
from ldm.samplers.grid import Grid, Karras, OrUniform
from ldm.types import Prediction

__all__ = ["Euler", "EulerAncestral"]


@dataclass(frozen=True)
class Euler(Churned):
    """First-order steps of dy / dk = eps, with y = x / alpha and k = sigma / alpha, and churn.

    y + (k_s - k) eps is x_s = alpha_s x0 + sigma_s eps. For rectified flow that is also
    x + (s - t) (eps - x0), a step of Euler in time; and without churn it is `DDIM` on another grid.
    """

    def rule(self, run: Run) -> StepRule:
        """x0 and eps, put together at the level of the next node."""
        alpha, sigma = run.alpha, run.sigma

        def step(i: int, prediction: Prediction) -> tuple[Tensor, Prediction]:
            x = (prediction.x0 * alpha[i + 1]).add_(prediction.eps, alpha=sigma[i + 1])
            return x, prediction

        return step


@dataclass(frozen=True)
class EulerAncestral(Sampler):
    """An Euler step to less noise than the next node has, k_down, then noise k_up up to its level.

        k_up = eta k_s sqrt(1 - (k_s / k)^2),  k_down^2 = k_s^2 - k_up^2

    In x that is `DDIM` with this eta, on the grid of `Euler`.

    eta: 0 adds no noise, 1 that of the diffusion.  s_noise: multiplies the added noise.
    """

    grid: Grid = field(default_factory=lambda: OrUniform(Karras()))
    eta: Weight = 1.0
    s_noise: Weight = 1.0

    def __post_init__(self) -> None:
        """Refuse less noise than none, and more than a level has."""
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}, expected 0 to 1")

    @property
    def adds_noise(self) -> bool:
        """With an eta."""
        return self.eta > 0

    def rule(self, run: Run) -> StepRule:
        """Coefficients of x0, eps and noise for every step."""
        return DDIM(eta=self.eta, temperature=self.s_noise).rule(run)
