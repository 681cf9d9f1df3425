"""The time of an evaluation as a number, and what wrappers keep during a run."""

import numpy as np
import pytest
import torch

from ldm.diffusion.moment import Memory, current_moment, host_times, moment_of_run
from ldm.diffusion.schedule import PublishedSchedule, RectifiedFlow
from ldm.samplers.ddim import DDIM
from ldm.samplers.heun import Heun
from ldm.samplers.plms import PLMS
from tests.gaussian import GaussianDenoiser

X = torch.randn(2, 1, 2, 2)


def test_outside_of_a_run_the_times_are_read():
    assert current_moment() is None
    assert host_times(torch.tensor([3, 999])).tolist() == [3.0, 999.0]


def test_in_a_run_the_times_are_not_read():
    with moment_of_run(0.25, Memory()):
        times = host_times(torch.empty(2, device="meta"))
    assert times.tolist() == [0.25]
    assert times.dtype == np.float64


def test_a_run_inside_of_a_run_ends_where_it_began():
    with moment_of_run(0.5, Memory()):
        with moment_of_run(0.25, Memory()):
            assert current_moment().time == 0.25
        assert current_moment().time == 0.5
    assert current_moment() is None


def test_an_error_ends_the_moment():
    with pytest.raises(KeyError), moment_of_run(0.5, Memory()):
        raise KeyError
    assert current_moment() is None


@pytest.mark.parametrize(
    ("sampler", "schedule"),
    [
        (DDIM(), RectifiedFlow()),
        (DDIM(), PublishedSchedule()),
        (Heun(), PublishedSchedule()),
        (PLMS(), PublishedSchedule()),
    ],
)
def test_every_evaluation_of_a_run_is_at_the_time_that_is_said(sampler, schedule):
    inner = GaussianDenoiser(schedule)

    def denoiser(x_t, t, cond):
        (time,) = host_times(t)
        torch.testing.assert_close(t.double(), torch.full((2,), time, dtype=torch.float64))
        return inner(x_t, t, cond)

    sampler.sample(denoiser, X, schedule=schedule, steps=4)
    assert inner.evaluations >= 4


def test_nothing_is_said_to_a_callback():
    seen = []
    DDIM().sample(
        GaussianDenoiser(PublishedSchedule()), X, schedule=PublishedSchedule(), steps=2,
        callback=lambda *step: seen.append(current_moment()),
    )  # fmt: skip
    assert seen == [None, None]


def test_memory_lasts_for_one_run_and_belongs_to_one_wrapper():
    inner, recalled = GaussianDenoiser(PublishedSchedule()), []
    owner, other = object(), object()

    def denoiser(x_t, t, cond):
        memory = current_moment().memory
        recalled.append(memory.recall(owner))
        assert memory.recall(other) is None
        memory.keep(owner, t)
        return inner(x_t, t, cond)

    for _ in range(2):
        DDIM().sample(denoiser, X, schedule=PublishedSchedule(), steps=2)
    assert recalled[0] is None
    assert recalled[1].tolist() == [999, 999]
    assert recalled[2] is None
