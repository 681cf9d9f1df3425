"""The C library's allocator, told what training on a CPU is like."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

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
