"""Compiled networks whose graph is differentiated more than once."""

from __future__ import annotations

from torch import nn
from torch._functorch import config as functorch

__all__ = ["compile_for_several_gradients"]


def compile_for_several_gradients(network: nn.Module, *, dynamic: bool | None = False) -> None:
    """Compile a network in place; its graph may be kept for another gradient (`retain_graph`).

    A compiled backward pass reuses the memory of what the forward pass saved, unless it is told not
    to; a second gradient of the same pass would then be an error. This holds for all that the
    process compiles from here on, and costs some memory.
    dynamic: see `torch.compile`.
    """
    functorch.donated_buffer = False
    network.compile(dynamic=dynamic)
