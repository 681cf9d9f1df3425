"""The memory of a process: its allocator, what it is when there is no more, work in small parts."""

from __future__ import annotations

import ctypes
import gc
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds to import, and a command line may be wrong
    from torch import Tensor

__all__ = ["in_parts", "is_out_of_memory", "keep_freed_memory", "release_memory"]

# from glibc's <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 2**30  # bytes at the end of the heap that are not given back
_MAPPED_APART = 2**28  # bytes from which an allocation is mapped, and unmapped, by itself


def keep_freed_memory() -> None:
    """Have glibc keep what is freed: each step allocates the same again.

    Otherwise every large activation is fresh pages from the kernel, which it fills with zeros: up
    to a quarter of a step of the quickstart's UNet. Does nothing where there is no glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_APART)


# what torch says of a CPU's memory, which has no class of its own
_REFUSED = ("can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or this machine, has no more memory."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _REFUSED)


def release_memory(error: BaseException | None = None) -> None:
    """Let go of what nobody needs any more, first of all what an error's frames hold.

    The traceback of an error that happened in a forward pass keeps its activations alive.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()  # modules and graphs refer to themselves
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def in_parts(function: Callable[[Tensor], Tensor], x: Tensor, size: int | None) -> Tensor:
    """A function of each example of x (B, ...), of so many at a time; on the CPU.

    size: None for all at once.  A part's result leaves its device before the next one is made.
    """
    import torch

    return torch.cat([function(part).cpu() for part in torch.split(x, size or len(x))])
