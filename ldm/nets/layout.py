"""The order of a feature map in memory that the processor is fastest with."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["arranged"]

# cells of a map from which a CPU convolves faster when channels are last: up to eight times in half
# precision, a tenth in float32. On smaller ones arranging the weights, which stay as they are,
# costs what it saves (measured on Intel with AMX)
_MIN_CELLS = 64 * 64


def arranged(x: Tensor) -> Tensor:
    """x, (B, C, H, W), in the order its convolutions want; the same numbers.

    Convolutions and norms pass the order on, so it is chosen where the size of a map changes.
    Away from CPUs the order of the input and of the weights stands.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return x
    is_large = x.shape[2] * x.shape[3] >= _MIN_CELLS
    return x.contiguous(memory_format=torch.channels_last if is_large else torch.contiguous_format)
