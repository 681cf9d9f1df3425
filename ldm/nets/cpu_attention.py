"""Softmax attention on a CPU, where the fused kernel leaves most of the processor idle.

The fused kernel reaches 15 % of the peak at 32 channels per head; the plain products reach most
of it, but keep the attention weights. Here they are kept only where they are small, else the rows
are taken in blocks that fit the cache and computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from ldm.nets.linear import as_images, is_single_on_cpu, linear, prefers_convolution

__all__ = ["attend_on_cpu"]

_KEPT_WEIGHTS = 2**20  # attention weights per example that may be kept for the backward pass
_BLOCK_WEIGHTS = 2**19  # attention weights of a block: 1 MB in half precision
_MIN_ROWS = 512  # of a block; fewer do not fill the processor
# multiplications of q k^T per head; fewer do not pay for a loop over heads
_WORTHWHILE_HALF = 2**20
_WORTHWHILE_SINGLE = 2**25


def attend_on_cpu(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As `ldm.nets.attention.attend` without a mask, for tensors on a CPU."""
    heads, rows, columns, width = *q.shape[1:3], *k.shape[2:]
    half = q.dtype in (torch.bfloat16, torch.float16)
    if half and heads * rows * columns <= _KEPT_WEIGHTS:
        p = ((q * width**-0.5) @ k.transpose(2, 3)).softmax(dim=3, dtype=q.dtype)
        weighted: Tensor = p @ v
        return weighted
    worthwhile = _WORTHWHILE_HALF if half else _WORTHWHILE_SINGLE
    if rows * columns * width >= worthwhile and (half or is_single_on_cpu(q)):
        out: Tensor = _BlockedAttention.apply(q, k, v)
        return out
    return F.scaled_dot_product_attention(q, k, v)


class _BlockedAttention(torch.autograd.Function):
    """Blocks of rows, head by head; keeps q, k and v only."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        out = _tokens_first(q.shape[:3], v)
        for head, rows, scale in _blocks(q, k):
            p = _product(q[head][rows] * scale, k[head]).softmax(dim=1)
            out[head][rows] = _product(p, v[head].t())
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = ctx.saved_tensors
        grad_q = _tokens_first(q.shape[:3], q)
        grad_k, grad_v = (torch.zeros_like(t, dtype=torch.float32) for t in (k, v))
        for head, rows, scale in _blocks(q, k):
            q_rows, g = q[head][rows] * scale, grad_out[head][rows]
            p = _product(q_rows, k[head]).softmax(dim=1)
            grad_v[head] += _transposed_product(p, g)
            grad_s = torch._softmax_backward_data(_product(g, v[head]), p, 1, p.dtype)
            grad_q[head][rows] = _product(grad_s, k[head].t()) * scale
            grad_k[head] += _transposed_product(grad_s, q_rows)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


def _blocks(q: Tensor, k: Tensor) -> Iterator[tuple[tuple[int, int], slice, float]]:
    """Every head of every example, (b, h), with every block of its rows; and 1 / sqrt(d)."""
    step = max(_MIN_ROWS, _BLOCK_WEIGHTS // k.shape[2])
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for start in range(0, q.shape[2], step):
                yield (b, h), slice(start, start + step), q.shape[3] ** -0.5


def _tokens_first(shape: torch.Size, like: Tensor) -> Tensor:
    batch, heads, rows = shape
    return like.new_empty(batch, rows, heads, like.shape[3]).transpose(1, 2)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The product a b^T of a (N, C) and b (M, C): (N, M)."""
    return linear(a, b)


def _transposed_product(a: Tensor, b: Tensor) -> Tensor:
    """The product a^T b of a (N, M) and b (N, C): (M, C)."""
    if not prefers_convolution(b):
        return a.t() @ b
    # the weight gradient of the convolution that `linear` runs as
    shape = (a.shape[1], b.shape[1], 1, 1)
    product: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
        as_images(b), shape, as_images(a)
    )
    return product.flatten(1)
