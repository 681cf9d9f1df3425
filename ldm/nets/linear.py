"""Linear maps over the channels, of tokens and of feature maps.

In float32 on an AMD CPU the product runs as a 1x1 convolution: the matrix library does not use the
processor's widest instructions there, and oneDNN's convolution is twice as fast (measured on Zen 5:
240 against 105 GFLOP/s). Elsewhere it gains nothing (Intel: 192 against 208), and the matrix
product is taken.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.nets.precision import is_half_on_cpu, is_single_on_cpu

__all__ = [
    "Conv3x3",
    "Linear",
    "Pointwise",
    "linear",
    "on_tokens",
    "prefers_convolution",
]

# from this batch on torch takes oneDNN, whatever the size and the number of threads
_BATCH = 16
# fewer rows do not fill the convolution's blocks; of one example, so that the batch does not
# decide how an example is computed
_MIN_ROWS = 128
# a convolution of fewer values is not oneDNN's in any case
_MIN_VALUES = 20480
# in half precision, with no more cells than this, a matrix product beats the convolution
_MAX_SMALL_CELLS = 64


@cache
def _is_amd() -> bool:
    """Whether the processor is AMD's, as far as Linux says."""
    cpus = Path("/proc/cpuinfo")
    return cpus.exists() and "AuthenticAMD" in cpus.read_text(encoding="utf-8")


def prefers_convolution(x: Tensor) -> bool:
    """Whether a product with the rows of x, (..., N, C), is faster as a convolution."""
    if x.ndim < 2 or not is_single_on_cpu(x) or not _is_amd():
        return False
    return x.shape[-2] >= _MIN_ROWS and x.shape[-2] % _BATCH == 0


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product x W^T + b.  x: (..., C).  weight: (D, C).  bias: (D,). Returns (..., D)."""
    if not prefers_convolution(x):
        return F.linear(x, weight, bias)
    y = F.conv2d(_as_images(x), weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def _as_images(x: Tensor) -> Tensor:
    """Rows (..., C) as a batch of images (16, C, 1, rows / 16), channels last in memory."""
    return x.reshape(_BATCH, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)


class Linear(nn.Linear):
    """`torch.nn.Linear`, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features). Returns (..., out_features)."""
        return linear(x, self.weight, self.bias)


class Pointwise(nn.Conv2d):
    """1x1 convolution of a feature map.

    In half precision on a CPU a matrix product, which is two to four times as fast.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, C', H, W)."""
        if is_half_on_cpu(x) and x.is_contiguous(memory_format=torch.channels_last):
            y = F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
            return y.permute(0, 3, 1, 2)
        if is_half_on_cpu(x):
            y = self.weight.flatten(1) @ x.flatten(2)
            y = y if self.bias is None else y + self.bias.to(y.dtype)[:, None]
            return y.view(len(x), -1, *x.shape[2:])
        if is_single_on_cpu(x) and x[0].numel() > _MIN_VALUES and _is_amd():
            # dilation changes nothing for this kernel, but makes torch take oneDNN
            return F.conv2d(x, self.weight, self.bias, dilation=2)
        return super().forward(x)


class Conv3x3(nn.Conv2d):
    """3x3 convolution of a feature map, of the same height and width."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, C', H, W)."""
        if not _is_small(x):
            return super().forward(x)
        patches = F.unfold(x, 3, padding=1)  # (B, 9C, H W)
        y, bias = self.weight.flatten(1) @ patches, self.bias
        assert bias is not None
        return y.view(len(x), -1, *x.shape[2:]) + bias.to(y.dtype)[:, None, None]


def _is_small(x: Tensor) -> bool:
    """Whether a convolution of x spends its time on arranging weights, not on products."""
    return is_half_on_cpu(x) and x.numel() // x.shape[1] <= _MAX_SMALL_CELLS


def on_tokens(conv: nn.Conv1d | nn.Conv2d, tokens: Tensor) -> Tensor:
    """A convolution of kernel size 1, applied to tokens: (B, N, C) to (B, N, C')."""
    return linear(tokens, conv.weight.flatten(1), conv.bias)
