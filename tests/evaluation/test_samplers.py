"""Samplers at equal cost."""

import numpy as np
import pytest

from ldm.evaluation.samplers import Outcome, distance, outcome_table, steps_within
from ldm.samplers.ddim import DDIM
from ldm.samplers.heun import Heun
from ldm.samplers.plms import PLMS


@pytest.mark.parametrize(
    ("sampler", "allowed", "steps"),
    [
        (DDIM(), 7, 7),
        (Heun(), 7, 4),
        (Heun(), 8, 4),
        (PLMS(), 7, 6),
        (Heun(), 1, 1),
        (PLMS(), 1, 1),
    ],
)
def test_as_many_steps_are_taken_as_the_evaluations_allow(sampler, allowed, steps):
    assert steps_within(sampler, allowed) == steps
    assert sampler.evaluations(steps) <= allowed < sampler.evaluations(steps + 1)


def test_the_distance_is_the_median_of_root_mean_squares_in_levels():
    black = np.zeros((3, 4, 4, 3), np.uint8)
    other = black.copy()
    assert distance(black, black) == 0
    other[0] = 255
    assert distance(black, other) == 0
    other[1, ..., 0] = 30
    assert distance(black, other) == pytest.approx(30 / 3**0.5)


def test_a_table_has_a_row_per_sampler_and_gaps_where_nothing_was_drawn():
    outcomes = [
        Outcome("ddim", 4, 4, score=0.5, distance=2.0),
        Outcome("ddim", 8, 8, score=0.75, distance=1.0),
        Outcome("euler-a", 8, 8, score=1.0, distance=None),
    ]
    assert outcome_table(outcomes, "score", 100).splitlines()[2:] == [
        "| `ddim` | 50.0 | 75.0 |",
        "| `euler-a` |  | 100.0 |",
    ]
    assert outcome_table(outcomes, "distance").splitlines()[2:] == ["| `ddim` | 2.0 | 1.0 |"]
