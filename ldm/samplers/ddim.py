"""DDIM (arXiv:2010.02502): deterministic steps, with noise put back in proportion to eta."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from torch import Tensor

from ldm.diffusion.posterior import posterior_coefficients
from ldm.samplers.base import Run, Sampler, StepRule
from ldm.types import Prediction

__all__ = ["DDIM", "step_noise"]


@dataclass(frozen=True)
class DDIM(Sampler):
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - n^2) eps + n z, eq. (12) of the paper.

    eta: n in units of the posterior's standard deviation: 0 is the probability-flow ODE with Euler
    steps, 1 is ancestral sampling.  temperature: multiplies the added noise only.
    Sampling raises ValueError for an eta below 0, and for one so far above 1 that a step would add
    more noise than its time has.
    """

    eta: float = 0.0
    temperature: float = 1.0

    @property
    def adds_noise(self) -> bool:
        """With an eta."""
        return self.eta > 0

    def rule(self, run: Run) -> StepRule:
        """Coefficients of x0, eps and noise for every step."""
        noise = [
            step_noise(run.alpha[i], run.sigma[i], run.alpha[i + 1], run.sigma[i + 1], self.eta)
            for i in range(run.count)
        ]
        if not all(0 <= n <= sigma for n, sigma in zip(noise, run.sigma[1:], strict=True)):
            raise ValueError(
                f"eta is {self.eta}: a step cannot add less noise than none or more than its time "
                "has; expected 0 to 1"
            )
        signal = run.alpha[1:]
        direction = [sqrt(s**2 - n**2) for s, n in zip(run.sigma[1:], noise, strict=True)]

        def step(i: int, prediction: Prediction) -> tuple[Tensor, Prediction]:
            x = (prediction.x0 * signal[i]).add_(prediction.eps, alpha=direction[i])
            if noise[i]:
                x.add_(run.normal(x, i), alpha=noise[i] * self.temperature)
            return x, prediction

        return step


def step_noise(alpha_t: float, sigma_t: float, alpha_s: float, sigma_s: float, eta: float) -> float:
    """Standard deviation of the noise added on the way from t to s, eq. (16) of the paper."""
    *_, variance, _ = posterior_coefficients(alpha_t, sigma_t, alpha_s, sigma_s)
    return eta * sqrt(max(variance, 0.0))  # a step between equal times may round below 0
