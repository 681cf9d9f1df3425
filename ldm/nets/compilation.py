"""Compiled networks: of many shapes, and differentiated more than once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch._functorch import config as functorch

__all__ = ["compile_for_several_gradients", "room_for_shapes"]

_EACH = 8  # what torch allows one function in all, and we for each shape


def compile_for_several_gradients(network: nn.Module, *, dynamic: bool | None = False) -> None:
    """Compile a network in place; its graph may be kept for another gradient (`retain_graph`).

    A compiled backward pass reuses the memory of what the forward pass saved, unless it is told not
    to; a second gradient of the same pass would then be an error. This holds for all that the
    process compiles from here on, and costs some memory.
    dynamic: see `torch.compile`.
    """
    functorch.donated_buffer = False
    network.compile(dynamic=dynamic)


@contextmanager
def room_for_shapes(count: int) -> Iterator[None]:
    """Have networks compiled for so many shapes of their input, inside of this alone.

    Torch gives a function up after 8 compilations, warns, and runs it as it is. Here each shape has
    8 of its own: with its gradient and without, both halves of guidance, a second network. One that
    needs more is an error (`FailOnRecompileLimitHit`), so that what is said to be compiled is.
    """
    from torch._dynamo import config as dynamo  # slow to import

    limit = _EACH * count
    with dynamo.patch(
        recompile_limit=max(limit, dynamo.recompile_limit),
        accumulated_recompile_limit=max(limit, dynamo.accumulated_recompile_limit),
        fail_on_recompile_limit_hit=True,
    ):
        yield
