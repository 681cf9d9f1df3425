"""From data to noise and back."""

import numpy as np
import pytest
import torch

from ldm.diffusion.schedule import PublishedSchedule, RectifiedFlow, VarianceExploding
from ldm.samplers.base import Step
from ldm.samplers.ddim import DDIM
from ldm.samplers.grid import Explicit, Karras, PublishedUniform, Uniform
from ldm.samplers.inversion import DDIMInversion
from tests.gaussian import GaussianDenoiser
from tests.mixture import MixtureDenoiser

X = torch.randn(6, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SCHEDULES = [
    (PublishedSchedule().double(), Uniform()),
    (PublishedSchedule(zero_terminal_snr=True).double(), Uniform()),
    (RectifiedFlow(), Uniform()),
    (VarianceExploding(), Karras()),
]


def invert(x, schedule, grid, steps, denoiser=GaussianDenoiser, **options):
    return DDIMInversion(grid=grid).sample(
        denoiser(schedule), x, schedule=schedule, steps=steps, **options
    )


@pytest.mark.parametrize(("schedule", "grid"), SCHEDULES)
def test_inversion_converges_to_the_noise_of_the_probability_flow(schedule, grid):
    denoiser = GaussianDenoiser(schedule)
    want = denoiser.flow(X, schedule.t_clean, schedule.t_max)
    errors = [(invert(X, schedule, grid, n) - want).abs().max() for n in (100, 200)]
    assert errors[1] < 0.1 * schedule.prior_std
    # of first order, but for the step out of clean data, as large for every number of steps
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("kind", [GaussianDenoiser, MixtureDenoiser])
@pytest.mark.parametrize(("schedule", "grid"), SCHEDULES)
def test_a_round_trip_with_ddim_comes_closer_with_more_steps(schedule, grid, kind):
    errors = []
    for steps in (50, 100, 200):
        noise = invert(X, schedule, grid, steps, kind)
        back = DDIM(grid=grid).sample(kind(schedule), noise, schedule=schedule, steps=steps)
        errors.append(float((back - X).abs().mean()))
    assert errors[2] < 0.6 * errors[1] < 0.36 * errors[0]
    assert errors[2] < 0.05


@pytest.mark.parametrize("steps", range(2, 30, 3))
def test_one_evaluation_per_step_none_of_them_of_clean_data_or_at_the_end(steps):
    seen = []

    class Watching(GaussianDenoiser):
        def __call__(self, x_t, t, cond):
            seen.append(float(t[0]))
            return super().__call__(x_t, t, cond)

    for schedule in (PublishedSchedule(), RectifiedFlow()):
        seen.clear()
        invert(X.float(), schedule, Uniform(), steps, Watching)
        rising = Uniform()(schedule, steps)[::-1].tolist()
        assert seen == pytest.approx([rising[1], *rising[1:-1]])
        assert len(seen) == DDIMInversion().evaluations(steps)


def test_a_grid_from_a_smaller_time_inverts_up_to_there():
    schedule = PublishedSchedule().double()
    want, errors = GaussianDenoiser(schedule).flow(X, 0, 500), []
    for steps in (100, 200):
        grid = Explicit(np.linspace(500, 0, steps + 1))
        errors.append((invert(X, schedule, grid, steps) - want).abs().max())
    assert (errors[0] / errors[1]).log2() > 0.9
    assert errors[1] < 0.01 * want.abs().max()


def test_a_published_grid_starts_from_the_noise_of_time_0():
    schedule, steps = PublishedSchedule().double(), []
    invert(
        X, schedule, PublishedUniform(), 4, callback=lambda step, x, prediction: steps.append(step)
    )
    assert steps[0] == Step(0, 4, 0.0, 1.0)
    assert steps[-1] == Step(3, 4, 501.0, 751.0)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), PublishedSchedule(zero_terminal_snr=True)])
def test_a_single_step_to_pure_noise_is_refused(schedule):
    with pytest.raises(ValueError, match="at least 2 steps, got 1"):
        invert(X, schedule, Uniform(), 1)
