"""Models in memory that several tests draw with."""

import pytest

from tests.cli.jobs import built
from tests.cli.runs import second_stage, unconditional


@pytest.fixture(scope="module")
def plain():
    """One that is told nothing."""
    return built(unconditional())


@pytest.fixture(scope="module")
def by_class():
    """One that is told classes."""
    return built(second_stage())
