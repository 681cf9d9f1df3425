"""A training that is killed goes on in other processes and batches with the same samples and draws.

The long form is `python -m tests.layout_matrix`.
"""

import pytest

from tests.forked import ForkServer
from tests.layouts import Layout, Training, compared, moved

pytestmark = pytest.mark.slow

SAMPLES = 8  # of an optimizer step
TOLERANCE = 1e-5  # of losses, relative


@pytest.fixture(scope="module")
def server():
    with ForkServer() as started:
        yield started


@pytest.mark.parametrize(
    ("stage", "layouts", "killed_after"),
    [
        ("second", [Layout(1, 4), Layout(2, 2, 1)], 1),  # within an epoch
        ("first", [Layout(1, 4), Layout(1, 2)], 2),  # at its end, where the next one has more
    ],
)
def test_samples_times_and_noise_are_those_of_an_unbroken_training(
    stage, layouts, killed_after, server, tmp_path
):
    unbroken = Training(server, stage, tmp_path / "unbroken", SAMPLES)
    unbroken.start(Layout(1, 8))
    expected = unbroken.record()
    assert {step: len(ids) for step, ids in expected.ids.items()} == dict.fromkeys(range(4), 8)
    broken = Training(server, stage, tmp_path / "broken", SAMPLES)
    found = moved(broken, layouts, [killed_after])
    assert broken.kills == 1
    problems, worst, where = compared(expected, found)
    assert not problems
    assert worst < TOLERANCE, where
