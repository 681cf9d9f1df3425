"""In which precision a network computes, and which parts of it autocast must leave alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["HALF", "is_half_on_cpu", "is_single_on_cpu", "without_autocast"]

HALF = (torch.bfloat16, torch.float16)


def is_single_on_cpu(x: Tensor) -> bool:
    """Whether operations on x are computed in float32 on a CPU, outside of a compiler."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def is_half_on_cpu(x: Tensor) -> bool:
    """Whether operations on x are computed in half precision on a CPU, outside of a compiler."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return x.device.type == "cpu" and dtype in HALF and not torch.compiler.is_compiling()


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Inside, operations on the device of x keep the precision of their inputs."""
    # the meta device has no autocast, and torch refuses to switch off what is not there
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
