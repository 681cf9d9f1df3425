"""The small transformer over tokens: tau_theta of the text- and layout-conditional models.

A pre-norm encoder (arXiv:2002.04745) with learned positions, as the conditioner of Latent
Diffusion Models (arXiv:2112.10752, appendix E.2.1) uses it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm.nets.attention import attend
from ldm.nets.linear import Linear
from ldm.nets.transformer import FeedForward
from ldm.ranges import Positive

__all__ = ["AbsolutePositionalEmbedding", "Attention", "Encoder", "RMSNorm", "TransformerWrapper"]


class RMSNorm(nn.Module):
    """Root mean square normalization (arXiv:1910.07467) with a learned gain."""

    def __init__(self, dim: int, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps
        self.g = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., dim). Returns the same shape."""
        single = x.to(torch.promote_types(x.dtype, torch.float32))
        rms = single.square().mean(dim=-1, keepdim=True).sqrt()
        return (x / rms.clamp(min=self.eps)).to(x.dtype) * self.g  # eps: an all-zero token


class AbsolutePositionalEmbedding(nn.Module):
    """One learned vector per position."""

    def __init__(self, dim: int, max_seq_len: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(max_seq_len, dim)
        nn.init.normal_(self.emb.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, N, ...). Returns (N, dim)."""
        return self.emb.weight[: x.shape[1]]


class Attention(nn.Module):
    """Multi-head self-attention; heads of `dim_head` channels whatever the width of the model."""

    def __init__(self, dim: int, heads: int = 8, dim_head: int = 64) -> None:
        super().__init__()
        inner_dim = heads * dim_head
        self.heads = heads
        self.to_q = Linear(dim, inner_dim, bias=False)
        self.to_k = Linear(dim, inner_dim, bias=False)
        self.to_v = Linear(dim, inner_dim, bias=False)
        self.to_out = Linear(inner_dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: (B, N, D).  mask: (B, 1, N, N) boolean, true = look. Returns like x."""
        q, k, v = (self._heads(to(x)) for to in (self.to_q, self.to_k, self.to_v))
        out: Tensor = self.to_out(attend(q, k, v, mask).transpose(1, 2).flatten(2))
        return out

    def weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """What each token looks at: (B, heads, N, N), rows summing to 1."""
        q, k = self._heads(self.to_q(x)), self._heads(self.to_k(x))
        each = torch.eye(x.shape[1], dtype=q.dtype, device=q.device)  # the weights themselves
        return attend(q, k, each.expand(*q.shape[:2], -1, -1), mask)

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class Encoder(nn.Module):
    """`depth` layers of self-attention and feed-forward, each behind a norm, residual.

    ff_glu: a GEGLU instead of a GELU inside the feed-forward.  use_rmsnorm: RMSNorm for LayerNorm.
    """

    def __init__(
        self,
        dim: Positive,
        depth: Positive,
        heads: Positive = 8,
        attn_dim_head: Positive = 64,
        ff_mult: Positive = 4,
        ff_glu: bool = False,
        ff_dropout: float = 0.0,
        use_rmsnorm: bool = False,
    ) -> None:
        super().__init__()
        self.dim = dim
        norm = RMSNorm if use_rmsnorm else nn.LayerNorm
        self.layers = nn.ModuleList()
        for _ in range(depth):
            attention = Attention(dim, heads, attn_dim_head)
            feed_forward = FeedForward(dim, mult=ff_mult, glu=ff_glu, dropout=ff_dropout)
            self.layers.append(nn.ModuleList([norm(dim), attention]))
            self.layers.append(nn.ModuleList([norm(dim), feed_forward]))

    def forward(
        self, x: Tensor, mask: Tensor | None = None, return_attn: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """x: (B, N, dim).  mask: (B, N) boolean, true for tokens that count.

        Returns like x; and, with `return_attn`, the weights of each attention, (B, heads, N, N).
        """
        weights = []
        if mask is not None:
            mask = mask[:, None, :, None] & mask[:, None, None, :]
        for layer in self.layers:
            norm, block = layer.children()
            h = norm(x)
            if isinstance(block, Attention):
                if return_attn:
                    weights.append(block.weights(h, mask))
                h = block(h, mask)
            else:
                h = block(h)
            x = x + h
        return x, weights


class TransformerWrapper(nn.Module):
    """Tokens in, hidden states or token logits out.

    emb_dim: width of the embeddings, if not that of the layers.  num_memory_tokens: learned tokens
    in front of the sequence.  tie_embedding: logits are products with the embeddings.
    """

    def __init__(
        self,
        *,
        num_tokens: Positive,
        max_seq_len: Positive,
        attn_layers: Encoder,
        emb_dim: Positive | None = None,
        emb_dropout: float = 0.0,
        num_memory_tokens: int = 0,
        tie_embedding: bool = False,
        use_pos_emb: bool = True,
    ) -> None:
        super().__init__()
        dim = attn_layers.dim
        emb_dim = dim if emb_dim is None else emb_dim
        self.num_tokens = num_tokens
        self.max_seq_len = max_seq_len
        self.num_memory_tokens = num_memory_tokens
        self.token_emb = nn.Embedding(num_tokens, emb_dim)
        nn.init.normal_(self.token_emb.weight, std=0.02)
        self.pos_emb = AbsolutePositionalEmbedding(emb_dim, max_seq_len) if use_pos_emb else None
        self.emb_dropout = nn.Dropout(emb_dropout)
        self.project_emb = nn.Identity() if emb_dim == dim else Linear(emb_dim, dim)
        self.attn_layers = attn_layers
        self.norm = nn.LayerNorm(dim)
        self.to_logits = None if tie_embedding else Linear(dim, num_tokens)
        if num_memory_tokens > 0:
            self.memory_tokens = nn.Parameter(torch.randn(num_memory_tokens, dim))

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        return_embeddings: bool = False,
        return_attn: bool = False,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """tokens: (B, N) integers, N up to max_seq_len.  mask: (B, N), true for tokens that count.

        Returns logits (B, N, num_tokens), or hidden states (B, N, dim) with `return_embeddings`;
        and the weights of each attention with `return_attn`.
        Raises ValueError for a sequence that is too long.
        """
        if tokens.shape[1] > self.max_seq_len:
            raise ValueError(
                f"sequence of {tokens.shape[1]} tokens, max_seq_len is {self.max_seq_len}"
            )
        x = self.token_emb(tokens)
        if self.pos_emb is not None:
            x = x + self.pos_emb(tokens)
        x = self.project_emb(self.emb_dropout(x))
        if self.num_memory_tokens > 0:
            x = torch.cat([self.memory_tokens.expand(len(x), -1, -1), x], dim=1)
            if mask is not None:
                mask = nn.functional.pad(mask, (self.num_memory_tokens, 0), value=True)
        x, weights = self.attn_layers(x, mask, return_attn)
        x = self.norm(x)[:, self.num_memory_tokens :]
        out = x if return_embeddings else self._logits(x)
        return (out, weights) if return_attn else out

    def _logits(self, x: Tensor) -> Tensor:
        if self.to_logits is None:
            return x @ self.token_emb.weight.t()
        logits: Tensor = self.to_logits(x)
        return logits
