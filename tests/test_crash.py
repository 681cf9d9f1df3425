"""Trainings of both stages that die at points of saving and at moments end as unbroken ones do.

The long form is `python -m tests.crash_harness --kills 200`.
"""

import pytest
import torch

from tests.forked import ForkServer
from tests.lives import Death, Life, configuration, differences, read, same_run

pytestmark = pytest.mark.slow

DEATHS = {
    # the second: a validation that was begun anew is done, its best checkpoint written, no last one
    "first": [Death("last", 1), Death("middle", 2), Death(moment=0.5)],
    "second": [Death("renamed", 3), Death(moment=0.3), Death("manifest", 1)],
}


@pytest.fixture(scope="module")
def server():
    with ForkServer() as started:
        yield started


@pytest.fixture(scope="module", params=list(DEATHS))
def whole(request, server, tmp_path_factory):
    """A stage, and a life that nothing broke."""
    directory = tmp_path_factory.mktemp(request.param) / "whole"
    life = Life(server, configuration(request.param), directory)
    (start,) = life.live()
    assert not start.problems
    return request.param, life


def test_a_training_that_is_killed_ends_as_one_that_is_not(whole, server, tmp_path):
    stage, unbroken = whole
    config = configuration(stage, workers=int(stage == "second"))
    life = Life(server, config, tmp_path / "life", unbroken.measured())
    starts = life.live(DEATHS[stage])
    assert [start.has_died for start in starts] == [True, True, True, False]
    assert not [problem for start in starts for problem in start.problems]
    assert not same_run(life, unbroken.run)


def test_one_bit_of_a_moment_is_a_difference(whole):
    _, life = whole
    checkpoint = read(life.run / "checkpoints" / "last.ckpt")
    other = read(life.run / "checkpoints" / "last.ckpt")
    moment = other["optimizer_states"][0]["state"][0]["exp_avg_sq"]
    moment.view(-1)[0] = torch.nextafter(moment.view(-1)[0], torch.tensor(1.0))
    assert list(differences(checkpoint, other)) == [".optimizer_states.0.state.0.exp_avg_sq"]
