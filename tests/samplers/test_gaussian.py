"""Samplers on Gaussian data, whose probability flow and marginals are known exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ldm.diffusion.draws import GeneratorDraws, KeyedDraws
from ldm.diffusion.schedule import PublishedSchedule, RectifiedFlow, VarianceExploding
from ldm.samplers.ancestral import Ancestral
from ldm.samplers.ddim import DDIM
from ldm.samplers.dpm import DPMSolver
from ldm.samplers.grid import Explicit, Karras, LogSNR, Uniform
from ldm.samplers.plms import PLMS
from tests.gaussian import GaussianDenoiser
from tests.samplers.solvers import ODE, SOLVERS, STOCHASTIC, name

SCHEDULE = PublishedSchedule().double()
X = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(9, 1, 1, 1)


class UnitDraws:
    """The noise of step i is 1 in example i + 2 and 0 in all others."""

    def __init__(self, count):
        self.count = count

    def normal(self, shape, stream):
        z = torch.zeros(self.count, *shape)
        z[2 + int(stream.removeprefix("step "))] = 1
        return z


def exact_moments(sampler, schedule, steps, *, mean, std):
    """Mean and variance of the last state when the first is N(mean, std^2).

    All steps are linear in state and noise, so the answers to 0, to a state of 1, and to each
    step's noise of 1 say it all.
    """
    count = len(sampler.times(schedule, steps)) + 1
    x = torch.zeros(count, 1, 1, 1, dtype=torch.float64)
    x[1] = 1
    end = sampler.sample(
        GaussianDenoiser(schedule), x, schedule=schedule, steps=steps, draws=UnitDraws(count)
    ).flatten()
    slope, *noise = end[1:] - end[0]
    variance = (slope * std) ** 2 + torch.stack(noise).square().sum()
    return float(end[0] + slope * mean), float(variance)


@pytest.mark.parametrize("schedule", [SCHEDULE, VarianceExploding()])
@pytest.mark.parametrize("sampler", ODE, ids=name)
def test_error_falls_with_the_order_of_the_sampler(sampler, schedule):
    errors = []
    x = X * schedule.prior_std
    for steps in (80, 160):
        # ends at the least trained noise: the last step, to clean data, would be the same for all
        nodes = Karras(rho=7.0)(schedule, steps + 1)[:-1]
        denoiser = GaussianDenoiser(schedule)
        end = replace(sampler, grid=Explicit(nodes)).sample(
            denoiser, x, schedule=schedule, steps=steps
        )
        errors.append((end - denoiser.flow(x, nodes[0], nodes[-1])).abs().max())
    order = sampler.convergence_order
    assert (errors[0] / errors[1]).log2() > {1: 0.9, 2: 1.9, 3: 2.7}[order]


EVERY_SCHEDULE = [
    (PublishedSchedule(1000, "cosine").double(), Uniform()),
    (PublishedSchedule(zero_terminal_snr=True).double(), Uniform()),
    (RectifiedFlow(), Uniform()),
    (VarianceExploding(), Karras()),
]


@pytest.mark.parametrize(
    ("sampler", "schedule", "grid"),
    [
        (sampler, schedule, grid)
        for sampler in ODE
        for schedule, grid in EVERY_SCHEDULE
        if not (schedule.ends_in_pure_noise and isinstance(sampler, PLMS))  # refused, see below
    ],
    ids=name,
)
def test_every_schedule_leads_to_the_solution(sampler, schedule, grid):
    denoiser = GaussianDenoiser(schedule)
    x = X * schedule.prior_std
    end = replace(sampler, grid=grid).sample(denoiser, x, schedule=schedule, steps=400)
    want = denoiser.flow(x, schedule.t_max, schedule.t_clean)
    # of first and of higher order in 1 / 400, times what the schedule makes of it (measured: 7e-3
    # where the noise starts at 80 standard deviations, and 1e-3 from nearly pure noise)
    error = 1e-2 if sampler.convergence_order == 1 else 2e-3
    torch.testing.assert_close(end, want, rtol=0, atol=error)


@pytest.mark.parametrize("sampler", SOLVERS, ids=name)
def test_the_last_step_leaves_no_noise(sampler):
    """Data of one value: whatever the start, the end is that value."""
    denoiser = GaussianDenoiser(SCHEDULE, mean=0.7, std=1e-9)
    end = sampler.sample(
        denoiser, X, schedule=SCHEDULE, steps=7, draws=KeyedDraws(range(9), seed=0)
    )
    torch.testing.assert_close(end, torch.full_like(X, 0.7), rtol=0, atol=1e-9)


@pytest.mark.parametrize("sampler", STOCHASTIC, ids=name)
def test_mean_and_variance_of_a_sampler_with_noise_converge(sampler):
    schedule, errors = RectifiedFlow(), []
    for steps in (160, 320):
        denoiser = GaussianDenoiser(schedule)
        fixed = replace(sampler, grid=Explicit(np.linspace(1, 0.03, steps + 1)))
        mean, variance = exact_moments(fixed, schedule, steps, mean=0.0, std=1.0)
        assert abs(mean - 0.97 * denoiser.mean) < 1e-12
        errors.append(abs(variance - (0.97 * denoiser.std) ** 2 - 0.03**2))
    # noise is added as if x0 were constant over a step, which is of second order
    assert np.log2(errors[0] / errors[1]) > min(sampler.convergence_order, 2) - 0.1


def check_moments(sampler, schedule, steps, *, mean, variance):
    """1e5 chains have this mean and variance, within 4 standard errors of each."""
    count = 100_000
    draws = GeneratorDraws(torch.Generator().manual_seed(0), count)
    x = sampler.sample(
        GaussianDenoiser(schedule), draws.normal((1, 1, 1), "x"),
        schedule=schedule, steps=steps, draws=draws,
    )  # fmt: skip
    assert abs(x.mean() - mean) < 4 * (variance / count) ** 0.5
    assert abs(x.var() - variance) < 4 * variance * (2 / count) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("sampler", STOCHASTIC, ids=name)
def test_chains_have_the_mean_and_variance_of_the_data(sampler):
    # so many steps that the error of their number is below one standard error of the variance
    schedule, steps = RectifiedFlow(), 2000 if sampler.convergence_order == 1 else 200
    fixed = replace(sampler, grid=Uniform())
    _, variance = exact_moments(fixed, schedule, steps, mean=0.0, std=1.0)
    assert abs(variance - 0.25) < 0.25 * (2 / 100_000) ** 0.5
    check_moments(fixed, schedule, steps, mean=0.7, variance=0.25)


@pytest.mark.parametrize("sampler", STOCHASTIC, ids=name)
def test_few_steps_have_the_moments_of_their_linear_recursion(sampler):
    mean, variance = exact_moments(sampler, SCHEDULE, 12, mean=0.0, std=1.0)
    check_moments(sampler, PublishedSchedule(), 12, mean=mean, variance=variance)


@pytest.mark.slow
@pytest.mark.parametrize("v", [0.0, 1.0])
def test_ancestral_chains_have_the_mean_and_variance_of_the_data(v):
    count, mean, std = 100_000, 0.7, 0.5
    schedule = PublishedSchedule()
    draws = GeneratorDraws(torch.Generator().manual_seed(0), count)
    x = Ancestral(v=v).sample(
        GaussianDenoiser(schedule, mean, std), draws.normal((1, 1, 1), "x"),
        schedule=schedule, steps=1000, draws=draws,
    )  # fmt: skip
    assert abs(x.mean() - mean) < 4 * std / count**0.5
    assert abs(x.var() - std**2) < 4 * std**2 * (2 / count) ** 0.5


def test_ddim_with_eta_1_is_ancestral_sampling():
    ends = [
        sampler.sample(
            GaussianDenoiser(SCHEDULE), X, schedule=SCHEDULE, steps=20,
            draws=KeyedDraws(range(9), seed=3),
        )
        for sampler in (DDIM(eta=1.0), Ancestral())
    ]  # fmt: skip
    torch.testing.assert_close(*ends, rtol=0, atol=1e-12)


def test_plms_of_order_1_is_ddim():
    ends = [
        sampler.sample(GaussianDenoiser(SCHEDULE), X, schedule=SCHEDULE, steps=20)
        for sampler in (DDIM(), PLMS(order=1))
    ]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [0, 5])
def test_plms_refuses_an_order_without_weights(order):
    with pytest.raises(ValueError, match="expected 1 to 4"):
        PLMS(order=order)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_more_predictions_make_plms_better_than_ddim(order):
    def error(sampler):
        nodes = Explicit(np.linspace(999, 0, 51))
        denoiser = GaussianDenoiser(SCHEDULE)
        x = replace(sampler, grid=nodes).sample(denoiser, X, schedule=SCHEDULE, steps=50)
        return (x - denoiser.flow(X, 999, 0)).abs().max()

    assert error(PLMS(order=order)) < error(DDIM()) / 10


def test_ten_dpm_steps_beat_fifty_of_ddim():
    def error(sampler, steps):
        denoiser = GaussianDenoiser(SCHEDULE)
        x = sampler.sample(denoiser, X, schedule=SCHEDULE, steps=steps)
        assert denoiser.evaluations == steps
        return (x - denoiser.flow(X, 999, -1)).abs().max()

    assert error(DPMSolver(grid=LogSNR()), 10) < error(DDIM(), 50)


@pytest.mark.parametrize("schedule", [PublishedSchedule(zero_terminal_snr=True), RectifiedFlow()])
def test_plms_refuses_pure_noise(schedule):
    with pytest.raises(ValueError, match="use DDIM"):
        PLMS().sample(GaussianDenoiser(schedule), X, schedule=schedule, steps=10)
