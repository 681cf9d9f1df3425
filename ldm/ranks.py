"""The processes that train together."""

from __future__ import annotations

from torch import Tensor, distributed

__all__ = ["mean_over_ranks", "sum_over_ranks", "world_size"]


def world_size() -> int:
    """Number of processes that train together, 1 without a process group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor over ranks, the same bits on each; the tensor itself where there is one.

    Every rank calls this.
    """
    if world_size() == 1:
        return value
    total = value.clone()
    distributed.all_reduce(total)
    return total


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a tensor over ranks; the tensor itself when there is one."""
    size = world_size()
    return value if size == 1 else sum_over_ranks(value) / size
