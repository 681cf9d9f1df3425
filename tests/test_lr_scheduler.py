"""Published learning-rate schedules."""

import pytest
import torch
from torch import nn

from ldm import lr_scheduler
from ldm.lr_scheduler import (
    LambdaLinearScheduler,
    LambdaWarmUpCosineScheduler,
    LambdaWarmUpCosineScheduler2,
)
from tests.reference import Case

CASE = Case("h_ema_lr_dist", "lr_schedules")
CYCLES = {
    "warm_up_steps": [10, 20],
    "cycle_lengths": [50, 100],
    "f_start": [0.1, 0.2],
    "f_max": [1.0, 0.5],
    "f_min": [0.3, 0.05],
}


@pytest.mark.parametrize("index", range(len(CASE.spec["constructors"])))
def test_schedule_equals_published_factors(index):
    constructor = CASE.spec["constructors"][index]
    schedule = getattr(lr_scheduler, constructor["target"].rsplit(".", 1)[1])(
        **constructor["params"]
    )
    steps = CASE.want[f"steps_{index}"]
    CASE.check(f"factor_{index}", [schedule(int(step)) for step in steps])


@pytest.mark.parametrize("cls", [LambdaLinearScheduler, LambdaWarmUpCosineScheduler2])
def test_cycles_hold_their_last_factor_after_the_end(cls):
    schedule = cls(**CYCLES)
    assert schedule(150) == pytest.approx(0.05)
    assert schedule(10**6) == schedule(150)


@pytest.mark.parametrize("cls", [LambdaLinearScheduler, LambdaWarmUpCosineScheduler2])
def test_boundary_step_belongs_to_the_earlier_cycle(cls):
    schedule = cls(**CYCLES)
    assert schedule(50) == pytest.approx(0.3)
    assert schedule(51) == pytest.approx(0.2 + 0.3 / 20)


def test_warm_up_cosine_passes_its_three_corners():
    schedule = LambdaWarmUpCosineScheduler(
        warm_up_steps=10, lr_min=0.1, lr_max=1.0, lr_start=0.01, max_decay_steps=110
    )
    corners = [schedule(step) for step in (0, 10, 60, 110, 1000)]
    assert corners == pytest.approx([0.01, 1.0, 0.55, 0.1, 0.1])


@pytest.mark.parametrize("cls", [LambdaLinearScheduler, LambdaWarmUpCosineScheduler2])
def test_cycles_reject_lists_of_unequal_length(cls):
    with pytest.raises(ValueError, match=r"one entry in each list.*'f_max': 1"):
        cls(**{**CYCLES, "f_max": [1.0]})


def test_a_cycle_without_steps_is_refused():
    with pytest.raises(ValueError, match=r"cycle_lengths: \[50, 0\]; expected 1 step or more"):
        LambdaLinearScheduler(**{**CYCLES, "cycle_lengths": [50, 0]})


def test_warm_up_cosine_rejects_a_decay_that_ends_before_the_warm_up():
    with pytest.raises(ValueError, match="max_decay_steps=5 must exceed warm_up_steps=10"):
        LambdaWarmUpCosineScheduler(10, 0.1, 1.0, 0.01, 5)


def test_schedule_state_in_a_checkpoint_is_plain_numbers(tmp_path):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    wrapped = torch.optim.lr_scheduler.LambdaLR(optimizer, LambdaLinearScheduler(**CYCLES))
    torch.save(wrapped.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["lr_lambdas"][0]["cycle_lengths"] == (50, 100)
