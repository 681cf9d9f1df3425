import pytest

from ldm.log import log


@pytest.fixture
def caplog_ldm(caplog, monkeypatch):
    """What the package logged; its logger keeps its messages to itself otherwise."""
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level("INFO", logger=log.name)
    return caplog
