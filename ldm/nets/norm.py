"""The group normalization of every network here, alone and with the SiLU behind it."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NormSiLU", "group_norm", "norm_silu"]

_aten = torch.ops.aten


def group_norm(channels: int, *, groups: int = 32, eps: float = 1e-5) -> nn.GroupNorm:
    """Group normalization (arXiv:1803.08494) with a learned scale and shift per channel.

    published: eps is 1e-5 in the denoiser, 1e-6 in the autoencoder and spatial transformer.
    Raises ValueError when the groups do not divide the channels.
    """
    if channels % groups:
        raise ValueError(
            f"{channels} channels cannot be normalized in {groups} groups; "
            f"the nearest width that can is {max(1, round(channels / groups)) * groups}"
        )
    return nn.GroupNorm(groups, channels, eps=eps)


def norm_silu(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """SiLU(norm(x)), x: (B, C, H, W).

    Outside of a compiler, which does this by itself, and on a CPU, where it was measured, the
    normalized tensor is not kept for the backward pass but computed again, for a third less
    memory and less than 1 % of the time.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.silu(norm(x))
    out: Tensor = _NormSiLU.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps)
    return out


class NormSiLU(nn.Sequential):
    """A group normalization, a SiLU and the layers behind them, in a row."""

    def __init__(self, channels: int, *layers: nn.Module) -> None:
        super().__init__(group_norm(channels), nn.SiLU(), *layers)

    def activate(self, x: Tensor) -> Tensor:
        """The first two layers."""
        norm = self[0]
        assert isinstance(norm, nn.GroupNorm)
        return norm_silu(x, norm)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns what the last layer does."""
        h = self.activate(x)
        for layer in islice(self, 2, None):
            h = layer(h)
        return h


def _memory_format(x: Tensor) -> torch.memory_format:
    """The layout of x where the normalization has a kernel for it, else the plain one."""
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


class _NormSiLU(torch.autograd.Function):
    """Keeps the input and the statistics of its groups."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        x = x.contiguous(memory_format=_memory_format(x))
        ctx.sizes = (x.shape[0], x.shape[1], x[0, 0].numel(), groups)
        ctx.eps = eps
        normalized, mean, rstd = _aten.native_group_norm(x, weight, bias, *ctx.sizes, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return F.silu(normalized)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        normalized = _aten.native_group_norm(x, weight, bias, *ctx.sizes, ctx.eps)[0]
        grad = _aten.silu_backward(grad, normalized).contiguous(memory_format=_memory_format(x))
        grads = _aten.native_group_norm_backward(
            grad, x, mean, rstd, weight, *ctx.sizes, ctx.needs_input_grad[:3]
        )
        return (*grads, None, None)
