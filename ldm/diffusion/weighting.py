"""Loss weights: how much the squared error at each time counts.

A weighting is a function of schedule and times; it returns the weight of the squared error of what
the network predicts. Weights that a paper states for x0 (or eps) are converted: at a given x_t the
errors are proportional, w_out = w_x0 (sigma / det)^2, so w_eps = w_x0 / SNR. Hence an objective
stays the same whatever is predicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ldm.diffusion.parameterization import x0_error_gain
from ldm.diffusion.schedule import Schedule

__all__ = ["EDM", "P2", "Elbo", "MinSNR", "PublishedX0Elbo", "Uniform", "Weighting"]


class Weighting(Protocol):
    """Weight of the squared error at times t (B,) when `parameterization` is predicted: (B,)."""

    def __call__(self, schedule: Schedule, t: Tensor, parameterization: str) -> Tensor:
        """The weights, all finite and at least 0."""
        ...


@dataclass(frozen=True)
class Uniform:
    """1 everywhere, on whatever is predicted: the simple loss of DDPM (arXiv:2006.11239)."""

    def __call__(self, schedule: Schedule, t: Tensor, parameterization: str) -> Tensor:
        """Ones (B,)."""
        return torch.ones(t.shape, device=t.device)


@dataclass(frozen=True)
class Elbo:
    """The weight that makes the squared error a term of the bound on -log p(x0), in nats.

    w_x0(t) = (SNR(t-1) - SNR(t)) / 2, eq. (13) of VDM (arXiv:2107.00630). The term at t = 0 is not
    a Kullback-Leibler divergence, so there is no such weight (SNR(-1) is infinite): as in the
    release, entry 0 is a copy of entry 1, of whatever is predicted.

    v_posterior: variance of the reverse step, from 0, the posterior's, to 1, beta.
    """

    v_posterior: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a variance outside of the two that it lies between."""
        if not 0 <= self.v_posterior <= 1:
            raise ValueError(f"v_posterior is {self.v_posterior}, expected 0 to 1")

    def __call__(self, schedule: Schedule, t: Tensor, parameterization: str) -> Tensor:
        """Weights (B,) for integer t of a schedule in at least two steps; ValueError else."""
        t = _kl_times(schedule, t)
        alpha, sigma = schedule.coefficients(t)
        alpha_before, sigma_before = schedule.coefficients(t - 1)
        snr_ratio = (alpha * sigma_before / (alpha_before * sigma)) ** 2
        weight = (alpha_before / sigma_before) ** 2 * (1 - snr_ratio) / 2
        if self.v_posterior:
            small = (sigma_before / sigma) ** 2  # the posterior's variance in units of beta
            weight = weight * small / ((1 - self.v_posterior) * small + self.v_posterior)
        return weight * x0_error_gain(parameterization, alpha, sigma)


@dataclass(frozen=True)
class PublishedX0Elbo:
    """The release's weight for x0, alpha / (2 (2 - alpha^2)); it is not that of the bound.

    Kept to compare with numbers of the release, never a default: `Elbo` is right.
    """

    def __call__(self, schedule: Schedule, t: Tensor, parameterization: str) -> Tensor:
        """Weights (B,) for integer t; ValueError unless x0 is predicted."""
        if parameterization != "x0":
            raise ValueError(f"PublishedX0Elbo weighs x0, not {parameterization!r}: use Elbo")
        # published: not a difference of signal-to-noise ratios; docs/decisions/0001-elbo-weight.md
        alpha = schedule.alpha(_kl_times(schedule, t))
        return alpha / (2 * (2 - alpha**2))


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma) on x0 (arXiv:2303.09556): nearly clean times do not dominate."""

    gamma: float = 5.0

    def __call__(self, schedule: Schedule, t: Tensor, parameterization: str) -> Tensor:
        """Weights (B,)."""
        alpha, sigma = schedule.coefficients(t)
        snr = (alpha / sigma) ** 2
        return snr.clamp(max=self.gamma) * x0_error_gain(parameterization, alpha, sigma)


@dataclass(frozen=True)
class P2:
    """1 / (k + SNR)^gamma on eps (arXiv:2204.00227): less weight on imperceptible detail."""

    gamma: float = 1.0
    k: float = 1.0

    def __call__(self, schedule: Schedule, t: Tensor, parameterization: str) -> Tensor:
        """Weights (B,)."""
        alpha, sigma = schedule.coefficients(t)
        snr = (alpha / sigma) ** 2
        on_x0 = snr / (self.k + snr) ** self.gamma
        return on_x0 * x0_error_gain(parameterization, alpha, sigma)


@dataclass(frozen=True)
class EDM:
    """(k^2 + sigma_data^2) / (k sigma_data)^2 on x0, k = sigma / alpha (arXiv:2206.00364).

    sigma_data: standard deviation of the data.
    """

    sigma_data: float = 0.5

    def __call__(self, schedule: Schedule, t: Tensor, parameterization: str) -> Tensor:
        """Weights (B,)."""
        alpha, sigma = schedule.coefficients(t)
        on_x0 = (alpha / sigma) ** 2 + self.sigma_data**-2
        return on_x0 * x0_error_gain(parameterization, alpha, sigma)


def _kl_times(schedule: Schedule, t: Tensor) -> Tensor:
    """Times with an earlier trained time: 0 becomes 1."""
    if t.is_floating_point() or schedule.num_timesteps is None or schedule.num_timesteps < 2:
        raise ValueError(
            f"a bound in steps needs integer times of at least 2 steps, got {t.dtype} times of "
            f"{type(schedule).__name__} with {schedule.num_timesteps} steps"
        )
    return t.clamp(min=1)
