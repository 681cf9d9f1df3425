"""Time grids: counts, ends, spacing, and the published sub-sequences."""

import numpy as np
import pytest

from ldm.diffusion.posterior import published_buffers
from ldm.diffusion.schedule import PublishedSchedule, RectifiedFlow, VarianceExploding
from ldm.samplers.ddim import step_noise
from ldm.samplers.grid import (
    Explicit,
    Karras,
    Leading,
    LogSNR,
    OrUniform,
    PublishedQuadratic,
    PublishedUniform,
    Quadratic,
    Uniform,
)
from tests.reference import Case, cases

SCHEDULE = PublishedSchedule(linear_start=0.0015, linear_end=0.0195)
GRIDS = [Uniform(), Quadratic(), Karras(), Karras(rho=3.0), LogSNR(), OrUniform()]


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_every_number_of_steps_makes_so_many_evaluations(grid):
    for steps in range(1, 1001):
        times = grid(SCHEDULE, steps)
        assert times.dtype == np.float64
        assert len(times) == steps + 1
        assert times[0] == 999
        assert times[-1] == -1
        assert (np.diff(times) < 0).all()


def test_uniform_times_are_whole_and_as_equal_as_whole_times_can_be():
    for steps in range(1, 1001):
        times = Uniform()(SCHEDULE, steps)
        assert np.array_equal(times, np.round(times))
        gaps = -np.diff(times)
        assert gaps.max() - gaps.min() <= 1
    assert Uniform()(SCHEDULE, 4).tolist() == [999, 749, 499, 249, -1]


@pytest.mark.parametrize("total", [1, 2, 7, 64, 333])
@pytest.mark.parametrize("grid", [*GRIDS, Leading()], ids=repr)
def test_every_number_of_steps_of_a_short_schedule_is_made(grid, total):
    schedule = PublishedSchedule(total, linear_end=0.1)
    for steps in range(1, total + 1):
        times = grid(schedule, steps)
        assert len(times) == steps + 1
        assert times[-1] == -1
        assert (np.diff(times) < 0).all()
    if total > 1 and not isinstance(grid, OrUniform | LogSNR | Karras):
        assert times.tolist() == list(range(total - 1, -2, -1))


def test_leading_times_rise_from_0_in_whole_steps():
    assert Leading()(SCHEDULE, 4).tolist() == [750, 500, 250, 0, -1]
    for steps in range(1, 1001):
        times = Leading()(SCHEDULE, steps)
        assert np.array_equal(times[:-1], [i * 1000 // steps for i in range(steps)][::-1])


def test_leading_times_are_those_of_the_published_grid_less_one_where_steps_divide_t():
    for steps in (1, 2, 4, 5, 10, 50, 100, 250, 500):
        published = PublishedUniform()(SCHEDULE, steps)[:-1]
        assert np.array_equal(Leading()(SCHEDULE, steps)[:-1], published - 1)


@pytest.mark.parametrize("schedule", [SCHEDULE, RectifiedFlow(), VarianceExploding()])
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_quadratic_times_grow_with_the_square(schedule, steps):
    times = Quadratic()(schedule, steps)
    part = (times - schedule.t_clean) / (schedule.t_max - schedule.t_clean)
    error = 1e-12 if schedule.num_timesteps is None else 0.5 / 1000 + 1e-12
    np.testing.assert_allclose(part[::-1], (np.arange(steps + 1) / steps) ** 2, atol=error)


def test_quadratic_times_are_whole_and_rise_in_growing_steps():
    for steps in range(1, 1001):
        times = Quadratic()(SCHEDULE, steps)
        assert np.array_equal(times, np.round(times))
        gaps = -np.diff(times)[::-1]
        assert (np.diff(gaps) >= -1).all()


@pytest.mark.parametrize("grid", [Karras(), LogSNR()])
def test_a_grid_of_levels_or_uniform_is_uniform_where_there_is_pure_noise(grid):
    for schedule in (RectifiedFlow(), PublishedSchedule(zero_terminal_snr=True)):
        assert np.array_equal(OrUniform(grid)(schedule, 9), Uniform()(schedule, 9))
    for schedule in (SCHEDULE, VarianceExploding()):
        assert np.array_equal(OrUniform(grid)(schedule, 9), grid(schedule, 9))


@pytest.mark.parametrize("schedule", [RectifiedFlow(), VarianceExploding()])
@pytest.mark.parametrize("steps", [1, 2, 5, 40])
def test_uniform_times_of_a_continuous_schedule_are_equally_spaced(schedule, steps):
    times = Uniform()(schedule, steps)
    np.testing.assert_allclose(np.diff(times), -schedule.t_max / steps, rtol=1e-12)
    assert times[-1] == schedule.t_clean


@pytest.mark.parametrize("schedule", [SCHEDULE, VarianceExploding()])
def test_karras_levels_are_equally_spaced_in_their_root(schedule):
    alpha, sigma = schedule.exact(Karras(rho=7.0)(schedule, 12)[:-1])
    spacing = np.diff((sigma / alpha) ** (1 / 7))
    np.testing.assert_allclose(spacing, spacing[0], rtol=1e-8)


@pytest.mark.parametrize("schedule", [SCHEDULE, VarianceExploding()])
def test_log_snr_times_are_equally_spaced_in_log_snr(schedule):
    alpha, sigma = schedule.exact(LogSNR()(schedule, 12)[:-1])
    spacing = np.diff(np.log(alpha / sigma))
    np.testing.assert_allclose(spacing, spacing[0], rtol=1e-8)


@pytest.mark.parametrize("grid", [Karras(), LogSNR()])
@pytest.mark.parametrize("schedule", [RectifiedFlow(), PublishedSchedule(zero_terminal_snr=True)])
def test_noise_level_grids_refuse_pure_noise(grid, schedule):
    with pytest.raises(ValueError, match="use Uniform"):
        grid(schedule, 10)


@pytest.mark.parametrize(
    "grid", [*GRIDS, Leading(), PublishedUniform(), PublishedQuadratic()], ids=repr
)
@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_impossible_numbers_of_steps_are_refused(grid, steps):
    with pytest.raises(ValueError, match=f"steps is {steps}, expected at least 1 and at most T"):
        grid(SCHEDULE, steps)


@pytest.mark.parametrize("grid", [Leading(), PublishedUniform(), PublishedQuadratic()])
def test_published_grids_need_integer_times(grid):
    with pytest.raises(ValueError, match="RectifiedFlow"):
        grid(RectifiedFlow(), 10)


def test_explicit_times_are_taken_as_they_are():
    assert Explicit([999, 10.5, 0])(SCHEDULE, 2).tolist() == [999, 10.5, 0]


@pytest.mark.parametrize("times", [[5], [5, 7], [5, 5, 1], [1000, 4], [4, -2]])
def test_explicit_times_must_fall_inside_the_schedule(times):
    with pytest.raises(ValueError, match="falling times"):
        Explicit(times)(SCHEDULE, 1)


def test_published_uniform_fails_where_the_release_fails():
    failing = []
    for steps in range(1, 1001):
        try:
            times = PublishedUniform()(SCHEDULE, steps)
        except ValueError:
            failing.append(steps)
        else:
            assert len(times) == -(-1000 // (1000 // steps)) + 1
    assert failing == [3, 9, 27, 36, 37, *range(101, 112), *range(251, 334), *range(501, 1001)]


@pytest.mark.parametrize("name", cases("e_ddim_tables"))
def test_published_sub_sequences_match_the_reference(name):
    case = Case("e_ddim_tables", name)
    arguments = case.spec["arguments"]
    # the reference works on tables rounded to float32
    abar = published_buffers(SCHEDULE)["alphas_cumprod"].double().numpy()
    for method, grid in (("uniform", PublishedUniform()), ("quad", PublishedQuadratic())):
        for steps in arguments["S"]:
            prefix = f"{method}_S{steps}_"
            if prefix + "alphas" not in case.want:
                assert case.want.pop(prefix + "timesteps")[-1] == 1000
                with pytest.raises(ValueError, match="asks for time 1000"):
                    grid(SCHEDULE, steps)
                continue
            times = grid(SCHEDULE, steps)[::-1].astype(int)
            levels = abar[times]
            np.testing.assert_array_equal(times[1:], case.want.pop(prefix + "timesteps"))
            case.check(prefix + "alphas", levels[1:])
            case.check(prefix + "alphas_prev", levels[:-1])
            case.check(prefix + "sqrt_one_minus_alphas", np.sqrt(1 - levels[1:]))
            for key in ("alphas", "alphas_prev", "sqrt_one_minus_alphas"):
                del case.want[prefix + key]
            for eta in arguments["eta"]:
                sigmas = [
                    step_noise(*np.sqrt([now, 1 - now, before, 1 - before]), eta)
                    for now, before in zip(levels[1:], levels[:-1], strict=True)
                ]
                case.check(prefix + f"sigmas_eta{eta}", sigmas)
                del case.want[prefix + f"sigmas_eta{eta}"]
    assert not case.want
