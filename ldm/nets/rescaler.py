"""Networks that change the size of a latent."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.nets.autoencoder_blocks import AttnBlock, ResnetBlock, Upsample
from ldm.nets.norm import group_norm, norm_silu
from ldm.ranges import Positive

__all__ = ["LatentRescaler", "UpsampleDecoder"]


class LatentRescaler(nn.Module):
    """Resizes a latent by any factor, nearest neighbour between two rows of residual blocks."""

    def __init__(
        self, factor: float, in_channels: int, mid_channels: int, out_channels: int, depth: int = 2
    ) -> None:
        super().__init__()
        self.factor = factor
        self.conv_in = nn.Conv2d(in_channels, mid_channels, 3, padding=1)
        self.res_block1 = _residual_blocks([mid_channels] * (depth + 1))
        self.attn = AttnBlock(mid_channels)
        self.res_block2 = _residual_blocks([mid_channels] * (depth + 1))
        self.conv_out = nn.Conv2d(mid_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, in_channels, H, W). Returns (B, out_channels, H', W'), H' = round(factor H)."""
        h = self.conv_in(x)
        for block in self.res_block1:
            h = block(h)
        size = [round(self.factor * s) for s in h.shape[2:]]
        h = self.attn(F.interpolate(h, size=size, mode="nearest"))
        for block in self.res_block2:
            h = block(h)
        out: Tensor = self.conv_out(h)
        return out


class UpsampleDecoder(nn.Module):
    """Residual blocks at each resolution, twice as large from one to the next, no attention.

    `resolution` is informative.
    """

    def __init__(
        self,
        in_channels: Positive,
        out_channels: Positive,
        ch: Positive,
        num_res_blocks: Positive,
        resolution: Positive,
        ch_mult: Sequence[Positive] = (2, 2),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [ch * mult for mult in ch_mult]
        self.res_blocks = nn.ModuleList(
            _residual_blocks([before] + [width] * (num_res_blocks + 1), dropout)
            for before, width in pairwise([in_channels, *widths])
        )
        self.upsample_blocks = nn.ModuleList(
            Upsample(width, with_conv=True) for width in widths[:-1]
        )
        self.norm_out = group_norm(widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, in_channels, H, W). Returns (B, out_channels, H', W'), 2^(levels - 1) as large."""
        h = x
        for i, blocks in enumerate(self.res_blocks):
            h = h if i == 0 else self.upsample_blocks[i - 1](h)
            for block in blocks.children():
                h = block(h)
        out: Tensor = self.conv_out(norm_silu(h, self.norm_out))
        return out


def _residual_blocks(widths: Sequence[int], dropout: float = 0.0) -> nn.ModuleList:
    return nn.ModuleList(
        ResnetBlock(in_channels=a, out_channels=b, dropout=dropout, temb_channels=0)
        for a, b in pairwise(widths)
    )
