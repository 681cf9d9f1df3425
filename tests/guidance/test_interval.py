"""Guidance in a part of the levels only."""

import numpy as np
import pytest
import torch

from ldm.diffusion.schedule import PublishedSchedule, RectifiedFlow, VarianceExploding
from ldm.guidance.classifier_free import ClassifierFree
from ldm.guidance.interval import Interval
from ldm.samplers.ddim import DDIM
from ldm.samplers.grid import Explicit, Uniform
from ldm.samplers.heun import Heun
from ldm.types import Conditioning
from tests.guidance.wrappers import SCHEDULES, net

X = torch.randn(2, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
COND = Conditioning(vector=torch.tensor([0.5, -0.5], dtype=torch.float64))
NULL = Conditioning(vector=torch.tensor([-1.0], dtype=torch.float64))
SCHEDULE = PublishedSchedule().double()


class Counting:
    """Counts the examples that the network sees at each call."""

    def __init__(self, schedule):
        self.inner = net(schedule)
        self.sizes = []

    def __call__(self, x_t, t, cond):
        self.sizes.append(len(x_t))
        return self.inner(x_t, t, cond)


def run(schedule, *limits, sampler=None, scale=3.0, steps=10):
    plain = Counting(schedule)
    guided = ClassifierFree(plain, scale, NULL)
    denoiser = Interval(guided, plain, schedule, *limits) if limits else guided
    x = schedule.prior_std * X
    sampler = sampler or DDIM()
    end = sampler.sample(denoiser, x, schedule=schedule, steps=steps, cond=COND)
    return end, plain.sizes


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("unit", ["time", "sigma"])
def test_an_empty_interval_is_no_guidance_for_one_pass_of_b(schedule, unit):
    end, sizes = run(schedule, 0.4, 0.4, unit)
    assert torch.equal(end, run(schedule, scale=1)[0])
    assert sizes == [2] * 10


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("unit", ["time", "sigma"])
def test_a_full_interval_is_guidance_everywhere(schedule, unit):
    end, sizes = run(schedule, 0.0, float("inf"), unit)
    assert torch.equal(end, run(schedule)[0])
    assert sizes == [4] * 10


def test_limits_in_time_are_open_below_and_closed_above():
    _, sizes = run(RectifiedFlow(), 0.2, 0.7)
    assert sizes == [4 if 2 < node <= 7 else 2 for node in range(10, 0, -1)]


def test_a_limit_on_a_node_is_met_whatever_the_rounding_of_the_grid():
    nodes = np.arange(10, 0, -1)
    times = Uniform()(RectifiedFlow(), 10)[:-1]
    rounded = times.astype(np.float32).astype(np.float64)  # as a device has them
    assert not np.array_equal(times, nodes / 10)
    for low in range(11):
        for high in range(low, 11):
            interval = Interval(None, None, RectifiedFlow(), low / 10, high / 10)
            expected = (low < nodes) & (nodes <= high)
            assert np.array_equal(interval.contains(times), expected)
            assert np.array_equal(interval.contains(rounded), expected)


def test_time_of_a_discrete_schedule_is_counted_from_clean_data():
    _, sizes = run(SCHEDULE, 0.2, 0.7)
    assert sizes == [4 if 2 < node <= 7 else 2 for node in range(10, 0, -1)]


def test_sigma_is_the_noise_in_units_of_the_data():
    schedule = VarianceExploding()
    times = [80.0, 3.0, 2.9, 1.0, 0.28, 0.1, 0.0]
    _, sizes = run(schedule, 0.28, 2.9, "sigma", sampler=DDIM(Explicit(times)))
    assert sizes == [2, 2, 4, 4, 2, 2]


def test_an_interval_of_sigma_is_the_same_part_of_every_schedule():
    levels = np.array([30.0, 2.0, 1.0, 0.5, 0.1])
    for schedule in SCHEDULES.values():
        interval = Interval(None, None, schedule, 0.4, 1.5, "sigma")
        times = schedule.time_of_log_snr(-2 * np.log(levels))
        assert interval.contains(times).tolist() == [False, False, True, True, False]


def test_pure_noise_is_above_every_finite_sigma():
    interval = Interval(None, None, RectifiedFlow(), 0.0, 1e9, "sigma")
    assert interval.contains(np.array([1.0, 0.999])).tolist() == [False, True]


def test_each_evaluation_of_a_step_is_decided_by_itself():
    schedule = VarianceExploding()
    sampler = Heun(Explicit([80.0, 2.0, 1.0, 0.1, 0.0]))
    _, sizes = run(schedule, 0.5, 1.5, "sigma", sampler=sampler)
    # both slopes of 80 -> 2, of 2 -> 1, of 1 -> 0.1, the last step
    assert sizes == [2, 2, 2, 4, 4, 2, 2]


def test_outside_of_a_run_each_example_is_decided_by_itself():
    t = torch.tensor([100, 800])
    plain = net(SCHEDULE)
    guided = ClassifierFree(plain, 3.0, NULL)
    got = Interval(guided, plain, SCHEDULE, 0.5)(X, t, COND)
    assert torch.equal(got.x0[0], plain(X, t, COND).x0[0])
    assert torch.equal(got.eps[0], plain(X, t, COND).eps[0])
    assert torch.equal(got.x0[1], guided(X, t, COND).x0[1])
    assert torch.equal(got.eps[1], guided(X, t, COND).eps[1])


def test_outside_of_a_run_the_time_is_read_from_the_device():
    # so the test of all wrappers, that a run reads nothing, could fail
    x, t = X.to("meta"), torch.empty(2, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        Interval(net(SCHEDULE), net(SCHEDULE), SCHEDULE)(x, t, None)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ((0.7, 0.2), "expected 0 <= low <= high, got 0.7 and 0.2"),
        ((-0.1, 0.2), "expected 0 <= low <= high, got -0.1"),
        ((float("nan"), 0.2), "expected 0 <= low <= high, got nan"),
        ((0.1, 0.2, "snr"), "unit is 'snr', expected one of"),
    ],
)
def test_limits_that_make_no_interval_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        Interval(None, None, SCHEDULE, *limits)
