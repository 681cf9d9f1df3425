"""Data N(mean, std^2), for which everything about diffusion is known in closed form."""

from dataclasses import dataclass

import torch

from ldm.tensor import expand_to
from ldm.types import Prediction


@dataclass
class GaussianDenoiser:
    """The ideal denoiser E[x0 | x_t]; counts its evaluations.  mean, std: numbers or (B,)."""

    schedule: object
    mean: float = 0.7
    std: float = 0.5
    evaluations: int = 0

    def __call__(self, x_t, t, cond):
        self.evaluations += 1
        alpha, sigma = (expand_to(level, x_t) for level in self.schedule.coefficients(t))
        precision = alpha**2 * self.std**2 + sigma**2
        x0 = (self.mean * sigma**2 + self.std**2 * alpha * x_t) / precision
        eps = sigma * (x_t - alpha * self.mean) / precision  # without a division by sigma
        return Prediction(x0=x0, eps=eps)

    def flow(self, x, start, end):
        """Exact solution at time `end` of the probability-flow ODE from state x at `start`."""
        (a1, a0), (s1, s0) = self.schedule.exact(torch.tensor([start, end]).double().numpy())
        spread = ((a0 * self.std) ** 2 + s0**2) / ((a1 * self.std) ** 2 + s1**2)
        return a0 * self.mean + (x - a1 * self.mean) * spread**0.5
