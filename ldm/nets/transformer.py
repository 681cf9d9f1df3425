"""Transformer blocks that attend to a context, and their use on feature maps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.nets.attention import CrossAttention, to_tokens
from ldm.nets.linear import Linear, on_tokens
from ldm.nets.norm import group_norm
from ldm.nets.recompute import recompute
from ldm.nets.weights import zeroed

__all__ = ["GEGLU", "BasicTransformerBlock", "FeedForward", "SpatialTransformer"]


class GEGLU(nn.Module):
    """Gated linear unit with a GELU gate: (x W + b) * gelu(x V + c), arXiv:2002.05202."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = Linear(dim_in, 2 * dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., dim_in). Returns (..., dim_out)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        out: Tensor = value * F.gelu(gate)
        return out


class FeedForward(nn.Module):
    """Two linear layers with a GELU or GEGLU between them, `mult` times as wide inside."""

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        mult: int = 4,
        glu: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        inner_dim = dim * mult
        project_in = (
            GEGLU(dim, inner_dim) if glu else nn.Sequential(Linear(dim, inner_dim), nn.GELU())
        )
        self.net = nn.Sequential(project_in, nn.Dropout(dropout), Linear(inner_dim, dim_out or dim))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., dim). Returns (..., dim_out)."""
        out: Tensor = self.net(x)
        return out


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention to the context, feed-forward; each behind a LayerNorm, residual.

    Without a context the second attention is self-attention too, if the widths allow it.
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        d_head: int,
        dropout: float = 0.0,
        context_dim: int | None = None,
        gated_ff: bool = True,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.attn1 = CrossAttention(dim, heads=n_heads, dim_head=d_head, dropout=dropout)
        self.ff = FeedForward(dim, dropout=dropout, glu=gated_ff)
        self.attn2 = CrossAttention(dim, context_dim, n_heads, d_head, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.checkpoint = checkpoint

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: (B, N, dim).  context: (B, M, context_dim). Returns like x."""
        return recompute(self._forward, x, context, enabled=self.checkpoint)

    def _forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context) + x
        out: Tensor = self.ff(self.norm3(x)) + x
        return out


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a feature map, with a residual connection.

    Sec. 3.3 and appendix E.2.1 of Latent Diffusion Models (arXiv:2112.10752).
    """

    def __init__(
        self,
        in_channels: int,
        n_heads: int,
        d_head: int,
        depth: int = 1,
        dropout: float = 0.0,
        context_dim: int | None = None,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        inner_dim = n_heads * d_head
        self.norm = group_norm(in_channels, eps=1e-6)
        self.proj_in = nn.Conv2d(in_channels, inner_dim, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                inner_dim, n_heads, d_head, dropout, context_dim, checkpoint=use_checkpoint
            )
            for _ in range(depth)
        )
        self.proj_out = zeroed(nn.Conv2d(inner_dim, in_channels, 1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W).  context: (B, M, context_dim). Returns like x."""
        h = on_tokens(self.proj_in, to_tokens(self.norm(x)))  # (B, N, inner_dim)
        for block in self.transformer_blocks:
            h = block(h, context)
        return x + on_tokens(self.proj_out, h).transpose(1, 2).reshape(x.shape)
