"""Networks that are compiled for more than one gradient."""

import torch
from torch._functorch import config as functorch

from ldm.nets.compilation import compile_for_several_gradients


def test_a_compiled_pass_keeps_its_memory_for_the_next_gradient():
    """Torch reuses it by default and then refuses the second gradient, in large networks only."""
    network = torch.nn.Linear(4, 2)
    with functorch.patch(donated_buffer=True):  # put back afterwards
        compile_for_several_gradients(network)
        assert functorch.donated_buffer is False
    assert network._compiled_call_impl is not None
