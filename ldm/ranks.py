"""The processes that train together."""

from __future__ import annotations

from torch import distributed

__all__ = ["world_size"]


def world_size() -> int:
    """Number of processes that train together, 1 without a process group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1
