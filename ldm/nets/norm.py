"""The group normalization of every network here, alone and with the SiLU behind it."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.nets.precision import HALF

__all__ = ["GroupNorm", "NormSiLU", "group_norm", "norm_silu"]

_aten = torch.ops.aten
# rows that one product with ones adds up, in float32, before they are rounded to half precision
_ROWS = 32


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` with a faster backward pass where torch's is slow.

    In half precision on a CPU, in channels-last memory, it takes a fifth of the time.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, *size). Returns the same shape."""
        return _normalize(x, self, activate=False)


def group_norm(channels: int, *, groups: int = 32, eps: float = 1e-5) -> GroupNorm:
    """Group normalization (arXiv:1803.08494) with a learned scale and shift per channel.

    published: eps is 1e-5 in the denoiser, 1e-6 in the autoencoder and spatial transformer.
    Raises ValueError when the groups do not divide the channels.
    """
    if channels % groups:
        raise ValueError(
            f"{channels} channels cannot be normalized in {groups} groups; "
            f"the nearest width that can is {max(1, round(channels / groups)) * groups}"
        )
    return GroupNorm(groups, channels, eps=eps)


def norm_silu(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """SiLU(norm(x)).  x: (B, C, H, W). Returns the same shape.

    Outside of a compiler, which does this by itself, and on a CPU, where it was measured, the
    normalized tensor is not kept for the backward pass but computed again, for a third less
    memory and less than 1 % of the time.
    """
    return _normalize(x, norm, activate=True)


class NormSiLU(nn.Sequential):
    """A group normalization, a SiLU and the layers behind them, in a row."""

    def __init__(self, channels: int, *layers: nn.Module) -> None:
        super().__init__(group_norm(channels), nn.SiLU(), *layers)

    def activate(self, x: Tensor) -> Tensor:
        """The first two layers.  x: (B, C, H, W). Returns the same shape."""
        norm = self[0]
        assert isinstance(norm, nn.GroupNorm)
        return norm_silu(x, norm)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns what the last layer does."""
        h = self.activate(x)
        for layer in islice(self, 2, None):
            h = layer(h)
        return h


def _normalize(x: Tensor, norm: nn.GroupNorm, *, activate: bool) -> Tensor:
    has_own_backward = activate or (x.dtype in HALF and _layout(x) == torch.channels_last)
    if x.device.type != "cpu" or torch.compiler.is_compiling() or not has_own_backward:
        normalized = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
        return F.silu(normalized) if activate else normalized
    out: Tensor = _Normalize.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps, activate)
    return out


def _layout(x: Tensor) -> torch.memory_format:
    """The layout of x where the normalization has a kernel for it, else the plain one."""
    if x.ndim != 4 or x.is_contiguous():
        return torch.contiguous_format
    is_last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


class _Normalize(torch.autograd.Function):
    """Keeps the input and the statistics of its groups."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        activate: bool,
    ) -> Tensor:
        x = x.contiguous(memory_format=_layout(x))
        ctx.sizes = (x.shape[0], x.shape[1], x[0, 0].numel(), groups)
        ctx.eps, ctx.activate = eps, activate
        normalized, mean, rstd = _aten.native_group_norm(x, weight, bias, *ctx.sizes, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return F.silu(normalized) if activate else normalized

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        layout = _layout(x)
        if ctx.activate:
            normalized = _aten.native_group_norm(x, weight, bias, *ctx.sizes, ctx.eps)[0]
            grad = _aten.silu_backward(grad, normalized)
        grad = grad.contiguous(memory_format=layout)
        if x.dtype in HALF and layout == torch.channels_last:
            grads = _channels_last_backward(grad, x, weight, mean, rstd)
        else:
            grads = _aten.native_group_norm_backward(
                grad, x, mean, rstd, weight, *ctx.sizes, ctx.needs_input_grad[:3]
            )
        return (*grads, None, None, None)


def _channels_last_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (B, C, H, W), weight and bias (C,).

    With the sums over positions s = sum grad and p = sum grad x, and over a group of n values
    S = sum_c weight s, P = sum_c weight p, the gradient of x is linear in grad and x:

        weight rstd grad + u x + v,  u = (S mean - P) rstd^3 / n,  v = -u mean - S rstd / n.
    """
    rows, grad_rows = (t.permute(0, 2, 3, 1).flatten(1, 2) for t in (x, grad))  # (B, H W, C)
    batch, cells, channels = rows.shape
    mean, rstd = mean.float()[..., None], rstd.float()[..., None]  # (B, groups, 1)
    grouped = (batch, mean.shape[1], -1)
    s, p = (_sum_of_rows(t).view(grouped) for t in (grad_rows, grad_rows * rows))
    scale = weight.float().view(1, mean.shape[1], -1)
    count = cells * scale.shape[2]
    total_s, total_p = ((scale * t).sum(dim=2, keepdim=True) for t in (s, p))
    u = (total_s * mean - total_p) * rstd**3 / count
    v = -u * mean - total_s * rstd / count
    a, u, v = (t.expand_as(s).reshape(batch, 1, channels).to(x.dtype) for t in (scale * rstd, u, v))
    grad_x = torch.addcmul(torch.addcmul(v, rows, u), grad_rows, a)
    grad_weight = ((p - s * mean) * rstd).sum(dim=0).flatten()
    return (
        grad_x.view(batch, *x.shape[2:], channels).permute(0, 3, 1, 2),
        grad_weight.to(weight.dtype),
        s.sum(dim=0).flatten().to(weight.dtype),
    )


def _sum_of_rows(rows: Tensor) -> Tensor:
    """Sum over N of (B, N, C), in float32; products with ones are four times as fast as `sum`."""
    step = _ROWS if rows.shape[1] % _ROWS == 0 else 1
    batch, _, channels = rows.shape
    parts = rows.reshape(-1, step, channels)
    sums = (rows.new_ones(1, step) @ parts).view(batch, -1, channels)
    return sums.float().sum(dim=1)
