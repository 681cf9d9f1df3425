"""The processes that train together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, distributed

__all__ = [
    "alone",
    "gathered",
    "mean_over_ranks",
    "own_part",
    "rank",
    "sum_over_ranks",
    "world_size",
]

_IS_ALONE: ContextVar[bool] = ContextVar("is_alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process counts as the only one: the others, which may be gone, are not met."""
    token = _IS_ALONE.set(True)
    try:
        yield
    finally:
        _IS_ALONE.reset(token)


def world_size() -> int:
    """Number of processes that train together, 1 without a process group."""
    if distributed.is_available() and distributed.is_initialized() and not _IS_ALONE.get():
        return distributed.get_world_size()
    return 1


def rank() -> int:
    """Number of this process among those that train together, from 0."""
    return distributed.get_rank() if world_size() > 1 else 0


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


def gathered(value: Tensor) -> list[Tensor]:
    """The tensors of all ranks, of any lengths, on the CPU; the devices are waited for.

    Every rank calls this.
    """
    parts = [value.detach().cpu().clone()]  # not the whole storage of a part
    if world_size() > 1:
        parts *= world_size()
        distributed.all_gather_object(parts, parts[0])
    return parts


def own_part(parts: Sequence[Tensor]) -> Tensor:
    """What `gathered` had of this rank; an equal share of all, if there are more or fewer now."""
    if len(parts) == world_size():
        return parts[rank()]
    return torch.cat(list(parts))[rank() :: world_size()]
