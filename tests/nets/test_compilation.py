"""Networks that are compiled for more than one gradient, and for many shapes."""

import pytest
import torch
from torch._dynamo import config as dynamo
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.testing import CompileCounter
from torch._functorch import config as functorch

from ldm.nets.compilation import compile_for_several_gradients, room_for_shapes

LIMIT = dynamo.recompile_limit


def test_a_compiled_pass_keeps_its_memory_for_the_next_gradient():
    """Torch reuses it by default and then refuses the second gradient, in large networks only."""
    network = torch.nn.Linear(4, 2)
    with functorch.patch(donated_buffer=True):  # put back afterwards
        compile_for_several_gradients(network)
        assert functorch.donated_buffer is False
    assert network._compiled_call_impl is not None


@pytest.fixture
def counted():
    """A network that is compiled, and what counts its compilations."""
    torch.compiler.reset()
    network, counter = torch.nn.Linear(4, 2), CompileCounter()
    network.compile(dynamic=False, backend=counter)
    yield network, counter
    torch.compiler.reset()


def test_each_of_many_shapes_is_compiled(counted):
    network, counter = counted
    with room_for_shapes(LIMIT + 3):
        for rows in range(2, LIMIT + 5):
            network(torch.zeros(rows, 4))
    assert counter.frame_count == LIMIT + 3


def test_a_network_that_is_given_up_is_an_error_and_not_silent(counted):
    network, _ = counted
    with room_for_shapes(1):
        for rows in range(2, LIMIT + 2):
            network(torch.zeros(rows, 4))
        with pytest.raises(FailOnRecompileLimitHit):
            network(torch.zeros(LIMIT + 2, 4))


def test_torchs_settings_are_put_back():
    names = ("recompile_limit", "accumulated_recompile_limit", "fail_on_recompile_limit_hit")
    before = [getattr(dynamo, name) for name in names]
    with room_for_shapes(1000):
        assert [getattr(dynamo, name) for name in names] == [8000, 8000, True]
    assert [getattr(dynamo, name) for name in names] == before
