"""What all tests share."""

import pytest
import torch

from ldm.log import log

# Networks as small as the tests' lose more to threads that wait for each other than they gain, and
# the test processes share the cores among themselves.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` run where there is one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def caplog_ldm(caplog, monkeypatch):
    """What the package logged; its logger keeps its messages to itself otherwise."""
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level("INFO", logger=log.name)
    return caplog


@pytest.fixture
def counted(monkeypatch):
    """Counts compilations, which take the graph as it is."""
    from torch._dynamo.testing import CompileCounter  # slow to import

    counter, compile_module = CompileCounter(), torch.nn.Module.compile
    torch.compiler.reset()
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda module, dynamic, mode: compile_module(module, dynamic=dynamic, backend=counter),
    )
    yield counter
    torch.compiler.reset()
