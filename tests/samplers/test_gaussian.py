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
from ldm.samplers.heun import Heun
from ldm.samplers.plms import PLMS
from tests.gaussian import GaussianDenoiser

SCHEDULE = PublishedSchedule().double()
X = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(9, 1, 1, 1)

# deterministic samplers and their order of convergence
ODE = [(DDIM, 1), (PLMS, 2), (DPMSolver, 2), (Heun, 2)]
EVERY = [DDIM(), DDIM(eta=1.0), Ancestral(), Ancestral(v=1.0), PLMS(), DPMSolver(), Heun()]


def id_of(value):
    return value.__name__ if isinstance(value, type) else repr(value)


@pytest.mark.parametrize(("sampler", "order"), ODE, ids=id_of)
def test_error_falls_with_the_order_of_the_sampler(sampler, order):
    errors = []
    for steps in (80, 160):
        nodes = Karras(rho=7.0)(SCHEDULE, steps + 1)[:-1]  # ends at time 0, where the ODE is known
        denoiser = GaussianDenoiser(SCHEDULE)
        end = sampler(grid=Explicit(nodes)).sample(denoiser, X, schedule=SCHEDULE, steps=steps)
        errors.append((end - denoiser.flow(X, 999, 0)).abs().max())
    assert (errors[0] / errors[1]).log2() > order - 0.1


@pytest.mark.parametrize(
    ("schedule", "grid"),
    [
        (PublishedSchedule(1000, "cosine").double(), Uniform()),
        (PublishedSchedule(zero_terminal_snr=True).double(), Uniform()),
        (RectifiedFlow(), Uniform()),
        (VarianceExploding(), Karras()),
    ],
)
@pytest.mark.parametrize(("sampler", "error"), [(DDIM, 1e-2), (DPMSolver, 1e-3)])
def test_every_schedule_leads_to_the_solution(sampler, error, schedule, grid):
    denoiser = GaussianDenoiser(schedule)
    x = X * schedule.prior_std
    end = sampler(grid=grid).sample(denoiser, x, schedule=schedule, steps=400)
    want = denoiser.flow(x, schedule.t_max, schedule.t_clean)
    # of first and of second order in 1 / 400, times what the schedule makes of it (measured: 7e-3
    # where the noise starts at 80 standard deviations, and 5e-4 from pure noise)
    torch.testing.assert_close(end, want, rtol=0, atol=error)


@pytest.mark.parametrize("sampler", EVERY, ids=repr)
def test_the_last_step_leaves_no_noise(sampler):
    """Data of one value: whatever the start, the end is that value."""
    denoiser = GaussianDenoiser(SCHEDULE, mean=0.7, std=1e-9)
    end = sampler.sample(
        denoiser, X, schedule=SCHEDULE, steps=7, draws=KeyedDraws(range(9), seed=0)
    )
    torch.testing.assert_close(end, torch.full_like(X, 0.7), rtol=0, atol=1e-9)


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


@pytest.mark.parametrize("sampler", [Ancestral(), DDIM(eta=0.5), Ancestral(temperature=0.6)])
def test_few_stochastic_steps_have_the_moments_of_the_linear_recursion(sampler):
    """Every step is linear in x and noise, so mean and variance follow step by step."""
    count, steps = 50_000, 12
    denoiser = GaussianDenoiser(SCHEDULE)
    quiet = KeyedDraws([0, 1], seed=0)
    moments = {"mean": 0.0, "variance": 1.0}

    def propagate(step, x, prediction):
        """One step from 0 and from 1 without noise gives the linear map, with noise its size."""
        nodes = Explicit([step.time, step.next_time])
        probe = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
        still, noisy = replace(sampler, grid=nodes, temperature=0.0), replace(sampler, grid=nodes)
        (offset, end), (moved, _) = (
            s.sample(denoiser, probe, schedule=SCHEDULE, steps=1, draws=quiet).flatten()
            for s in (still, noisy)
        )
        noise = (moved - offset) / quiet.normal((1, 1, 1), "step 0").flatten()[0]
        slope = end - offset
        moments["mean"] = slope * moments["mean"] + offset
        moments["variance"] = slope**2 * moments["variance"] + noise**2

    draws = GeneratorDraws(torch.Generator().manual_seed(1), count)
    x = sampler.sample(
        denoiser, draws.normal((1, 1, 1), "x").double(),
        schedule=SCHEDULE, steps=steps, draws=draws, callback=propagate,
    )  # fmt: skip
    deviation = moments["variance"] ** 0.5
    assert abs(x.mean() - moments["mean"]) < 4 * deviation / count**0.5
    assert abs(x.var() - moments["variance"]) < 4 * moments["variance"] * (2 / count) ** 0.5


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


@pytest.mark.parametrize("sampler", [PLMS(), Heun(grid=Uniform())])
def test_samplers_that_divide_by_alpha_refuse_pure_noise(sampler):
    schedule = PublishedSchedule(zero_terminal_snr=True).double()
    with pytest.raises(ValueError, match="use DDIM"):
        sampler.sample(GaussianDenoiser(schedule), X, schedule=schedule, steps=10)
