"""Building blocks of the autoencoder: residual blocks, attention, resampling, levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.nets.attention import LinearAttention, attend, to_tokens
from ldm.nets.layout import arranged
from ldm.nets.linear import Linear, Pointwise, on_tokens
from ldm.nets.norm import group_norm, norm_silu
from ldm.nets.upsample import upsample_conv
from ldm.spelling import require_known

__all__ = [
    "AttnBlock",
    "Downsample",
    "Level",
    "LinAttnBlock",
    "Middle",
    "ResnetBlock",
    "Upsample",
    "attention_of_type",
]

# published: eps of the autoencoder's norms; the denoiser's is 1e-5
_EPS = 1e-6


class ResnetBlock(nn.Module):
    """Residual block: norm, SiLU, 3x3 convolution, twice; told the time if `temb_channels`.

    A change of width goes through a 1x1 convolution, or a 3x3 one with `conv_shortcut`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        conv_shortcut: bool = False,
        dropout: float = 0.0,
        temb_channels: int = 512,
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        out_channels = out_channels or in_channels
        self.norm1 = group_norm(in_channels, groups=num_groups, eps=_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.temb_proj = Linear(temb_channels, out_channels) if temb_channels > 0 else None
        self.norm2 = group_norm(out_channels, groups=num_groups, eps=_EPS)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = self.nin_shortcut = None
        if in_channels != out_channels and conv_shortcut:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        elif in_channels != out_channels:
            self.nin_shortcut = Pointwise(in_channels, out_channels)

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W).  temb: (B, temb_channels). Returns (B, C', H, W)."""
        h = self.conv1(norm_silu(x, self.norm1))
        if temb is not None and self.temb_proj is not None:
            h = h + self.temb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(self.dropout(norm_silu(h, self.norm2)))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        elif self.nin_shortcut is not None:
            x = self.nin_shortcut(x)
        out: Tensor = x + h
        return out


class AttnBlock(nn.Module):
    """Single-head self-attention over the positions of a feature map, residual."""

    def __init__(self, in_channels: int, num_groups: int = 32) -> None:
        super().__init__()
        self.norm = group_norm(in_channels, groups=num_groups, eps=_EPS)
        self.q = nn.Conv2d(in_channels, in_channels, 1)
        self.k = nn.Conv2d(in_channels, in_channels, 1)
        self.v = nn.Conv2d(in_channels, in_channels, 1)
        self.proj_out = nn.Conv2d(in_channels, in_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns the same shape."""
        tokens = to_tokens(self.norm(x)).contiguous()  # (B, N, C), read three times
        q, k, v = (on_tokens(conv, tokens)[:, None] for conv in (self.q, self.k, self.v))
        h = on_tokens(self.proj_out, attend(q, k, v)[:, 0])
        return x + h.transpose(1, 2).reshape(x.shape)


class LinAttnBlock(LinearAttention):
    """Single-head linear attention; without norm and without residual connection."""

    def __init__(self, in_channels: int, num_groups: int = 32) -> None:
        super().__init__(in_channels, heads=1, dim_head=in_channels)


_ATTENTION_TYPES: dict[str, Callable[[int, int], nn.Module]] = {
    "vanilla": AttnBlock,
    "linear": LinAttnBlock,
    "none": nn.Identity,
}


def attention_of_type(attn_type: str, channels: int, num_groups: int = 32) -> nn.Module:
    """Attention for feature maps: "vanilla", "linear" or "none".

    Raises ValueError for another name.
    """
    require_known("attn_type", attn_type, _ATTENTION_TYPES)
    return _ATTENTION_TYPES[attn_type](channels, num_groups)


class Upsample(nn.Module):
    """Twice the height and width: nearest neighbour, then a 3x3 convolution if `with_conv`."""

    def __init__(self, in_channels: int, with_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, in_channels, 3, padding=1) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, C, 2H, 2W)."""
        if self.conv is None:
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return upsample_conv(x, self.conv.weight, self.conv.bias)


class Downsample(nn.Module):
    """Half the height and width: a 3x3 convolution if `with_conv`, else the 2x2 mean."""

    def __init__(self, in_channels: int, with_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, in_channels, 3, stride=2) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, C, H // 2, W // 2)."""
        if self.conv is None:
            return F.avg_pool2d(x, 2)
        # published: one row of zeros at the bottom and one column on the right, none opposite
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Level(nn.Module):
    """The residual blocks of one resolution, each with its attention if any, then resampling."""

    def __init__(
        self,
        widths: Sequence[tuple[int, int]],
        attn_type: str | None,
        dropout: float,
        temb_channels: int = 0,
        downsample: nn.Module | None = None,
        upsample: nn.Module | None = None,
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(
                in_channels=a,
                out_channels=b,
                dropout=dropout,
                temb_channels=temb_channels,
                num_groups=num_groups,
            )
            for a, b in widths
        )
        self.attn = nn.ModuleList(
            attention_of_type(attn_type, b, num_groups) for _, b in widths if attn_type is not None
        )
        self.downsample = downsample
        self.upsample = upsample

    def step(self, i: int, h: Tensor, temb: Tensor | None = None) -> Tensor:
        """The i-th residual block and its attention.

        h: (B, C, H, W).  temb: (B, temb_channels). Returns (B, C', H, W), C' of that block.
        """
        h = self.block[i](h, temb)
        return self.attn[i](h) if self.attn else h

    def resample(self, h: Tensor) -> Tensor:
        """The way to the next level; h itself at the last one.

        h: (B, C, H, W). Returns (B, C, H // 2, W // 2) on the way down, (B, C, 2H, 2W) on the way
        up.
        """
        for module in (self.downsample, self.upsample):
            h = h if module is None else arranged(module(h))
        return h

    def forward(self, h: Tensor) -> Tensor:
        """h: (B, C, H, W). Returns (B, C', H', W')."""
        for i in range(len(self.block)):
            h = self.step(i, h)
        return self.resample(h)


class Middle(nn.Module):
    """The coarsest resolution's blocks: residual, attention, residual."""

    def __init__(
        self,
        channels: int,
        attn_type: str,
        dropout: float,
        temb_channels: int = 0,
        num_groups: int = 32,
    ) -> None:
        super().__init__()

        def residual() -> ResnetBlock:
            return ResnetBlock(
                in_channels=channels,
                dropout=dropout,
                temb_channels=temb_channels,
                num_groups=num_groups,
            )

        self.block_1 = residual()
        self.attn_1 = attention_of_type(attn_type, channels, num_groups)
        self.block_2 = residual()

    def forward(self, h: Tensor, temb: Tensor | None = None) -> Tensor:
        """h: (B, C, H, W).  temb: (B, temb_channels). Returns like h."""
        out: Tensor = self.block_2(self.attn_1(self.block_1(h, temb)), temb)
        return out
