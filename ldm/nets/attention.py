"""Attention: one kernel, `attend`, and the layers that feed it.

Images become tokens, (B, C, H, W) -> (B, H W, C), so that every projection is one matrix product
and the kernel reads heads as strided views.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.nets.linear import Linear, on_tokens
from ldm.nets.norm import group_norm
from ldm.nets.precision import HALF
from ldm.nets.recompute import recompute
from ldm.nets.weights import zeroed

__all__ = [
    "AttentionBlock",
    "AttentionPool2d",
    "CrossAttention",
    "LinearAttention",
    "attend",
    "heads_of",
    "split_heads",
    "to_tokens",
]

# attention weights per example that may be kept for the backward pass: 2 MB in half precision
_MAX_KEPT_WEIGHTS = 2**20


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention softmax(q k^T / sqrt(d)) v, eq. (1) of arXiv:1706.03762.

    q: (B, heads, N, d).  k, v: (B, heads, M, d).  mask: boolean, broadcastable to
    (B, heads, N, M), true where a query may look; a row that may look nowhere looks everywhere.
    Returns (B, heads, N, d).
    """
    if mask is not None:
        # published: a row that may look nowhere has equal logits, not a softmax of nothing
        nowhere = ~mask.any(dim=-1, keepdim=True)
        q, mask = q.masked_fill(nowhere, 0), mask | nowhere
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if _prefers_products(q, k):
        weighted: Tensor = ((q * q.shape[3] ** -0.5) @ k.transpose(2, 3)).softmax(dim=3) @ v
        return weighted
    return F.scaled_dot_product_attention(q, k, v)


def _prefers_products(q: Tensor, k: Tensor) -> bool:
    """Whether two matrix products beat the fused kernel: for small maps in half precision on a CPU.

    There the kernel's backward pass is two to four times as slow (measured on Intel with AMX and
    on AMD Zen 5); larger maps would have to keep their attention weights.
    """
    return (
        q.device.type == "cpu"
        and q.dtype in HALF
        and q.shape[1] * q.shape[2] * k.shape[2] <= _MAX_KEPT_WEIGHTS
        and not torch.compiler.is_compiling()
    )


def heads_of(channels: int, num_heads: int = 1, num_head_channels: int = -1) -> int:
    """Number of heads; a width per head, where given (not -1), decides over a number of heads.

    Raises ValueError when the heads do not divide the channels.
    """
    name, divisor = ("num_heads", num_heads)
    if num_head_channels != -1:
        name, divisor = ("num_head_channels", num_head_channels)
    if divisor < 1 or channels % divisor:
        raise ValueError(f"{name}={divisor} does not divide the {channels} channels of this level")
    return num_heads if num_head_channels == -1 else channels // num_head_channels


def to_tokens(x: Tensor) -> Tensor:
    """Image (B, C, *size) as tokens (B, N, C)."""
    return x.flatten(2).transpose(1, 2)


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    """Queries, keys and values joined on channels, (B, N, 3C), as three (B, heads, N, d)."""
    return qkv.reshape(*qkv.shape[:2], 3, num_heads, -1).transpose(1, 3).unbind(2)


class CrossAttention(nn.Module):
    """Multi-head attention from x to a context, or to x itself when there is none.

    Eq. (4) ff. of Latent Diffusion Models (arXiv:2112.10752): Q = W_Q x, K = W_K c, V = W_V c.
    """

    def __init__(
        self,
        query_dim: int,
        context_dim: int | None = None,
        heads: int = 8,
        dim_head: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        inner_dim = heads * dim_head
        context_dim = query_dim if context_dim is None else context_dim
        self.heads = heads
        self.to_q = Linear(query_dim, inner_dim, bias=False)
        self.to_k = Linear(context_dim, inner_dim, bias=False)
        self.to_v = Linear(context_dim, inner_dim, bias=False)
        self.to_out = nn.Sequential(Linear(inner_dim, query_dim), nn.Dropout(dropout))

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """x: (B, N, D).  context: (B, M, D').  mask: (B, M), true = look. Returns like x."""
        context = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        q, k, v = (t.reshape(*t.shape[:2], self.heads, -1).transpose(1, 2) for t in (q, k, v))
        if mask is not None:
            mask = mask.flatten(1)[:, None, None]
        out: Tensor = self.to_out(attend(q, k, v, mask).transpose(1, 2).flatten(2))
        return out


class AttentionBlock(nn.Module):
    """Self-attention over the positions of a feature map, with a residual connection.

    Sec. 3.1 of ADM (arXiv:2105.05233).  `use_new_attention_order` says how the 3C channels of
    `qkv` are laid out: (q k v, heads, d) if true, else (heads, q k v, d).
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 1,
        num_head_channels: int = -1,
        use_checkpoint: bool = False,
        use_new_attention_order: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = heads_of(channels, num_heads, num_head_channels)
        self.use_checkpoint = use_checkpoint
        self.use_new_attention_order = use_new_attention_order
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, *size). Returns the same shape."""
        return recompute(self._forward, x, enabled=self.use_checkpoint)

    def _forward(self, x: Tensor) -> Tensor:
        qkv = on_tokens(self.qkv, to_tokens(self.norm(x)))  # (B, N, 3C)
        if self.use_new_attention_order:
            q, k, v = split_heads(qkv, self.num_heads)
        else:
            q, k, v = qkv.reshape(*qkv.shape[:2], self.num_heads, 3, -1).transpose(1, 2).unbind(3)
        h = attend(q, k, v).transpose(1, 2).flatten(2)  # (B, N, C)
        return x + on_tokens(self.proj_out, h).transpose(1, 2).reshape(x.shape)


class AttentionPool2d(nn.Module):
    """A feature map pooled to one vector: the attention of its mean over its positions.

    Sec. 2.3 of CLIP (arXiv:2103.00020).
    """

    def __init__(
        self,
        spacial_dim: int,  # published: the argument is spelt so
        embed_dim: int,
        num_heads_channels: int,
        output_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = heads_of(embed_dim, num_head_channels=num_heads_channels)
        num_tokens = spacial_dim**2 + 1
        self.positional_embedding = nn.Parameter(
            torch.randn(embed_dim, num_tokens) / math.sqrt(embed_dim)
        )
        self.qkv_proj = nn.Conv1d(embed_dim, 3 * embed_dim, 1)
        self.c_proj = nn.Conv1d(embed_dim, output_dim or embed_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) with H = W = spacial_dim. Returns (B, output_dim)."""
        tokens = to_tokens(x)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.positional_embedding.t()
        q, k, v = split_heads(on_tokens(self.qkv_proj, tokens), self.num_heads)
        pooled = attend(q[:, :, :1], k, v)  # only the mean's token asks
        return on_tokens(self.c_proj, pooled.transpose(1, 2).flatten(2))[:, 0]


class LinearAttention(nn.Module):
    """Attention whose cost is linear in the number of positions: q (softmax(k)^T v).

    Efficient Attention (arXiv:1812.01243), with the softmax over positions on the keys only.
    """

    def __init__(self, dim: int, heads: int = 4, dim_head: int = 32) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Conv2d(dim, 3 * heads * dim_head, 1, bias=False)
        self.to_out = nn.Conv2d(heads * dim_head, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns the same shape."""
        q, k, v = split_heads(on_tokens(self.to_qkv, to_tokens(x)), self.heads)
        context = k.softmax(dim=2).transpose(2, 3) @ v  # (B, heads, d, d)
        h = (q @ context).transpose(1, 2).flatten(2)
        return on_tokens(self.to_out, h).transpose(1, 2).reshape(x.shape)
