"""The posterior by brute-force Bayes, and the bound against the entropy of a Gaussian."""

import math

import numpy as np
import pytest
import torch

from ldm.diffusion.posterior import (
    bits_per_dim,
    posterior_coefficients,
    prior_bits_per_dim,
    q_posterior,
)
from ldm.diffusion.schedule import (
    DiscreteSchedule,
    PublishedSchedule,
    RectifiedFlow,
    VarianceExploding,
)
from tests.gaussian import GaussianDenoiser

SCHEDULES = [
    (PublishedSchedule().double(), 400, 150),
    (PublishedSchedule().double(), 1, 0),
    (PublishedSchedule().double(), 0, -1),
    (PublishedSchedule(zero_terminal_snr=True).double(), 999, 998),
    (RectifiedFlow(), 0.6, 0.25),
    (RectifiedFlow(), 1.0, 0.5),
    (VarianceExploding(), 3.0, 0.4),
]


@pytest.mark.parametrize(("schedule", "t", "s"), SCHEDULES)
def test_posterior_is_bayes_rule_on_scalars(schedule, t, s):
    """Product of q(x_s | x0) and q(x_t | x_s), both Gaussian in x_s."""
    (alpha_t, alpha_s), (sigma_t, sigma_s) = schedule.exact(np.array([t, s], dtype=float))
    x0, x_t = 0.8, -1.3
    gain = alpha_t / alpha_s
    step_variance = sigma_t**2 - gain**2 * sigma_s**2
    if sigma_s:
        precision = 1 / sigma_s**2 + gain**2 / step_variance
        mean = (alpha_s * x0 / sigma_s**2 + gain * x_t / step_variance) / precision
        variance = 1 / precision
    else:  # clean data is known
        mean, variance = x0, 0.0

    def tensor(value):
        dtype = torch.int64 if isinstance(value, int) else torch.float64
        return torch.tensor([value], dtype=dtype)

    got_mean, got_variance = q_posterior(
        schedule,
        torch.full((1, 1, 1, 1), x_t, dtype=torch.float64),
        torch.full((1, 1, 1, 1), x0, dtype=torch.float64),
        t=tensor(t), s=tensor(s),
    )  # fmt: skip
    # step_variance above is a difference of nearly equal numbers
    assert math.isclose(got_mean.item(), mean, rel_tol=1e-10)
    assert math.isclose(got_variance.item(), variance, rel_tol=1e-10, abs_tol=1e-300)
    *_, small, large = posterior_coefficients(alpha_t, sigma_t, alpha_s, sigma_s)
    assert math.isclose(small, variance, rel_tol=1e-10, abs_tol=1e-300)
    assert math.isclose(large, step_variance, rel_tol=1e-10)


@pytest.mark.parametrize("v", [0.0, 0.4, 1.0])
def test_v_mixes_the_two_variances(v):
    schedule = PublishedSchedule().double()
    t = torch.arange(1, 1000)
    x = torch.zeros(999, 1, 1, 1, dtype=torch.float64)
    _, variance = q_posterior(schedule, x, x, t=t, s=t - 1, v=v)
    _, small = q_posterior(schedule, x, x, t=t, s=t - 1)
    betas = torch.from_numpy(schedule.betas[1:])
    torch.testing.assert_close(variance, (1 - v) * small + v * betas, rtol=1e-9, atol=0)


def test_posteriors_chain_to_the_marginal():
    """Moments of q(x_s | x0) follow from q(x_t | x0) and the posterior, for any t > s."""
    schedule = RectifiedFlow()
    (alpha_t, alpha_s), (sigma_t, sigma_s) = schedule.exact(np.array([0.7, 0.2]))
    of_x_t, of_x0, variance, _ = posterior_coefficients(alpha_t, sigma_t, alpha_s, sigma_s)
    assert math.isclose(of_x_t * alpha_t + of_x0, alpha_s)
    assert math.isclose(of_x_t**2 * sigma_t**2 + variance, sigma_s**2)


def test_prior_divergence_is_that_of_two_gaussians():
    schedule = PublishedSchedule(100)  # so few steps leave some signal
    x0 = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    (alpha,), (sigma,) = schedule.exact(np.array([99.0]))
    q = torch.distributions.Normal(alpha * x0, sigma)
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0))
    want = kl.flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(prior_bits_per_dim(schedule, x0), want, rtol=1e-10, atol=0)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), VarianceExploding()])
def test_prior_divergence_vanishes_where_nothing_is_left_of_the_data(schedule):
    x0 = torch.randn(3, 2, 4, 4, dtype=torch.float64).clamp(-1, 1)
    assert prior_bits_per_dim(schedule, x0).max() < 2e-4


class SignDraws:
    """Noise of -1 and 1: exact expectations of squares of (x0, eps) over the four pairs."""

    def normal(self, shape, stream):
        return torch.tensor([1.0, -1.0, 1.0, -1.0]).reshape(4, *shape)


def test_bound_approaches_the_entropy_of_gaussian_data():
    mean, std = 0.3, 0.7
    x0 = mean + std * torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    entropy = math.log2(std * math.sqrt(2 * math.pi * math.e))

    def gap(steps):
        """Bits above the entropy with so many equal steps of log SNR."""
        abar = 1 / (1 + np.exp(np.linspace(-12, 12, steps)))
        schedule = DiscreteSchedule(1 - abar / np.append(1, abar[:-1])).double()
        denoiser = GaussianDenoiser(schedule, mean, std)
        terms = bits_per_dim(denoiser, schedule, x0.reshape(4, 1, 1, 1), draws=SignDraws())
        assert denoiser.evaluations == steps
        torch.testing.assert_close(terms.total, sum(terms.parts.values()))
        return terms.total.mean().item() - entropy

    gaps = [gap(steps) for steps in (100, 200, 400)]
    assert gaps[-1] > 0
    # the loss of a step is of second order in its size, so the sum is of first order
    assert 1.8 < gaps[0] / gaps[1] < 2.2
    assert 1.8 < gaps[1] / gaps[2] < 2.2
