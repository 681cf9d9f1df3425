"""A model in memory, to draw with."""

import pytest

from tests.cli.jobs import built
from tests.cli.runs import unconditional


@pytest.fixture(scope="module")
def plain():
    """One that is told nothing."""
    return built(unconditional())
