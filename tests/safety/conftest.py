"""A model in memory, to draw with."""

import pytest

from tests.cli.jobs import built
from tests.cli.runs import unconditional
from tests.safety.watching import watched


@pytest.fixture(scope="module")
def plain():
    """One that is told nothing."""
    return built(unconditional())


@pytest.fixture
def alone(tmp_path):
    """The directory outside of which nothing is written; a payload would leave `ran` in it."""
    with watched(tmp_path) as seen:
        yield tmp_path
    assert seen == []
    assert not list(tmp_path.rglob("ran"))
