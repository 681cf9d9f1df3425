"""Building blocks of the denoiser: residual blocks, resampling, and rows of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.nets.layout import arranged
from ldm.nets.linear import Conv3x3, Linear, Pointwise
from ldm.nets.norm import NormSiLU
from ldm.nets.recompute import recompute
from ldm.nets.transformer import SpatialTransformer
from ldm.nets.upsample import upsample_conv
from ldm.nets.weights import zeroed

__all__ = [
    "Downsample",
    "ResBlock",
    "TimestepEmbedSequential",
    "Upsample",
    "require_images",
    "require_size",
]


def require_images(dims: int) -> None:
    """Raise ValueError unless `dims`, the number of spatial dimensions, is 2."""
    if dims != 2:
        raise ValueError(f"dims={dims}: these networks are for images, dims=2")


def require_size(x: Tensor, factor: int) -> None:
    """Raise ValueError unless height and width of x (B, C, H, W) are multiples of `factor`."""
    if x.shape[2] % factor or x.shape[3] % factor:
        raise ValueError(
            f"x is {x.shape[2]}x{x.shape[3]}, height and width must be multiples of {factor}"
        )


class Upsample(nn.Module):
    """Twice the height and width: nearest neighbour, then a 3x3 convolution if `use_conv`."""

    def __init__(
        self,
        channels: int,
        use_conv: bool,
        dims: int = 2,
        out_channels: int | None = None,
        padding: int = 1,
    ) -> None:
        super().__init__()
        require_images(dims)
        out_channels = out_channels or channels
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=padding) if use_conv else None

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, C', 2H, 2W)."""
        if self.conv is not None and self.conv.padding == (1, 1):
            return upsample_conv(x, self.conv.weight, self.conv.bias)
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return x if self.conv is None else self.conv(x)


class Downsample(nn.Module):
    """Half the height and width: a 3x3 convolution of stride 2 if `use_conv`, else the 2x2 mean."""

    def __init__(
        self,
        channels: int,
        use_conv: bool,
        dims: int = 2,
        out_channels: int | None = None,
        padding: int = 1,
    ) -> None:
        super().__init__()
        require_images(dims)
        out_channels = out_channels or channels
        self.op = (
            nn.Conv2d(channels, out_channels, 3, stride=2, padding=padding)
            if use_conv
            else nn.AvgPool2d(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, C', H/2, W/2), odd sizes rounded up by `use_conv`."""
        out: Tensor = self.op(x)
        return out


class ResBlock(nn.Module):
    """Residual block that is told the time, and may resample.

    Sec. 3 of ADM (arXiv:2105.05233).  With `use_scale_shift_norm` the embedding scales and shifts
    the second norm (AdaGN), else it is added in front of it.  With `up` or `down` both branches
    are resampled, the residual one between its activation and its first convolution.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float = 0.0,
        out_channels: int | None = None,
        use_conv: bool = False,
        use_scale_shift_norm: bool = False,
        dims: int = 2,
        use_checkpoint: bool = False,
        up: bool = False,
        down: bool = False,
    ) -> None:
        super().__init__()
        require_images(dims)
        out_channels = out_channels or channels
        self.use_checkpoint = use_checkpoint
        self.use_scale_shift_norm = use_scale_shift_norm
        self.up, self.down = up, down
        self.in_layers = NormSiLU(channels, Conv3x3(channels, out_channels))
        self.h_upd, self.x_upd = _resample(channels, up, down), _resample(channels, up, down)
        self.emb_layers = nn.Sequential(
            nn.SiLU(), Linear(emb_channels, out_channels * (2 if use_scale_shift_norm else 1))
        )
        self.out_layers = NormSiLU(
            out_channels, nn.Dropout(dropout), zeroed(Conv3x3(out_channels, out_channels))
        )
        self.skip_connection = _skip(channels, out_channels, use_conv)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: (B, C, H, W).  emb: (B, emb_channels). Returns (B, C', H', W')."""
        return recompute(self._forward, x, emb, enabled=self.use_checkpoint)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self._in(x)
        emb = self.emb_layers(emb)[:, :, None, None]
        if self.use_scale_shift_norm:
            norm, activation, dropout, conv = self.out_layers
            scale, shift = emb.chunk(2, dim=1)
            h = torch.addcmul(shift, norm(h), 1 + scale)
            h = conv(dropout(activation(h)))
        else:
            h = self.out_layers(h + emb)
        out: Tensor = self.skip_connection(self.x_upd(x)) + h
        return out

    def _in(self, x: Tensor) -> Tensor:
        conv = self.in_layers[2]
        assert isinstance(conv, Conv3x3)
        if self.up:
            return upsample_conv(self.in_layers.activate(x), conv.weight, conv.bias)
        layers = self.in_layers
        h: Tensor = conv(self.h_upd(layers.activate(x))) if self.down else layers(x)
        return h


def _resample(channels: int, up: bool, down: bool) -> nn.Module:
    if up:
        return Upsample(channels, use_conv=False)
    return Downsample(channels, use_conv=False) if down else nn.Identity()


def _skip(channels: int, out_channels: int, use_conv: bool) -> nn.Module:
    if channels == out_channels:
        return nn.Identity()
    if use_conv:
        return nn.Conv2d(channels, out_channels, 3, padding=1)
    return Pointwise(channels, out_channels)


class TimestepEmbedSequential(nn.Sequential):
    """Layers in a row, each given what it takes besides x: the time embedding or the context."""

    def forward(  # type: ignore[override]
        self, x: Tensor, emb: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """x: (B, C, H, W).  emb: (B, emb_channels).  context: (B, M, context_dim).

        Returns (B, C', H', W'), as the layers make it.
        """
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return arranged(x)
