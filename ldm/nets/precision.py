"""In which precision a network computes, and which parts of it autocast must leave alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["HALF", "hold_products_in", "is_half_on_cpu", "is_single_on_cpu", "without_autocast"]

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


def hold_products_in(network: nn.Module, dtype: torch.dtype) -> None:
    """Keep weights and biases of linear layers and convolutions in half precision, for drawing.

    Autocast casts them at every call of a network that is not trained, a sixth of the time of a
    call of 294 M weights on a CPU. Held so, the network computes the same to the last bit under
    autocast to this type, and does not run without it. Norms and embeddings stay as they are.

    Raises ValueError for a type that is no half precision.
    """
    if dtype not in HALF:
        raise ValueError(f"dtype is {dtype}, expected one of {', '.join(map(str, HALF))}")
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
            for parameter in layer.parameters(recurse=False):
                parameter.requires_grad_(False)
                parameter.data = parameter.data.to(dtype)
