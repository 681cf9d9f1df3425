"""The convolutional halves of the first stage: Encoder and Decoder.

Sec. 3.1 and appendix G of Latent Diffusion Models (arXiv:2112.10752).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ldm.nets.autoencoder_blocks import Downsample, Level, Middle, Upsample
from ldm.nets.layout import arranged
from ldm.nets.norm import group_norm, norm_silu
from ldm.ranges import Positive

__all__ = ["Decoder", "Encoder", "attention_levels"]


def attention_levels(
    resolution: int, num_levels: int, attn_resolutions: Sequence[int], attn_type: str
) -> list[str | None]:
    """The attention of each level, finest first; None where there is none.

    published: the levels' sizes are those of the nominal `resolution`, whatever comes in.
    Raises ValueError when there is no level.
    """
    if not num_levels:
        raise ValueError("ch_mult=[]: expected one factor per level")
    sizes = [resolution // 2**level for level in range(num_levels)]
    return [attn_type if size in attn_resolutions else None for size in sizes]


class Encoder(nn.Module):
    """Image to the moments (or the vectors) of its latent.

    Level i has ch * ch_mult[i] channels and is down-sampled by 2^i.  attn_resolutions: the sizes,
    counted from `resolution`, at which there is attention.  double_z: mean and log-variance,
    2 z_channels outputs.  num_groups: of every GroupNorm; a group of one channel forgets that
    channel's level, so a narrow network wants fewer.  `out_ch` is the Decoder's and ignored: both
    take the same arguments.
    """

    def __init__(
        self,
        *,
        ch: Positive,
        out_ch: Positive,
        num_res_blocks: Positive,
        attn_resolutions: Sequence[Positive],
        in_channels: Positive,
        resolution: Positive,
        z_channels: Positive,
        ch_mult: Sequence[Positive] = (1, 2, 4, 8),
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        double_z: bool = True,
        use_linear_attn: bool = False,
        attn_type: str = "vanilla",
        num_groups: Positive = 32,
    ) -> None:
        super().__init__()
        attn_type = "linear" if use_linear_attn else attn_type
        widths = [ch * mult for mult in ch_mult]
        attention = attention_levels(resolution, len(widths), attn_resolutions, attn_type)
        self.in_channels = in_channels
        self.downsample_factor = 2 ** (len(widths) - 1)
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (before, width) in enumerate(zip([ch, *widths], widths, strict=False)):
            pairs = [(before, width)] + [(width, width)] * (num_res_blocks - 1)
            is_last = i == len(widths) - 1
            downsample = None if is_last else Downsample(width, resamp_with_conv)
            self.down.append(
                Level(pairs, attention[i], dropout, downsample=downsample, num_groups=num_groups)
            )
        self.mid = Middle(widths[-1], attn_type, dropout, num_groups=num_groups)
        self.norm_out = group_norm(widths[-1], groups=num_groups, eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], (1 + double_z) * z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, in_channels, H, W) in [-1, 1], H and W multiples of `downsample_factor` f.

        Returns (B, z_channels, H/f, W/f), twice the channels with `double_z`.
        Raises ValueError for another number of channels or another size.
        """
        factor = self.downsample_factor
        if x.shape[1] != self.in_channels:
            raise ValueError(f"images have {x.shape[1]} channels, expected {self.in_channels}")
        if x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(_size_problem(x.shape[2], x.shape[3], factor))
        h = self.conv_in(arranged(x))
        for level in self.down:
            h = level(h)
        out: Tensor = self.conv_out(norm_silu(self.mid(h), self.norm_out))
        return out


def _size_problem(height: int, width: int, factor: int) -> str:
    """Why images of this size cannot be encoded, and the nearest sizes that can."""
    lower = [max(side // factor, 1) * factor for side in (height, width)]
    upper = [-(-side // factor) * factor for side in (height, width)]
    sizes = " or ".join(dict.fromkeys(f"{h} x {w}" for h, w in (lower, upper)))
    return (
        f"images are {height} x {width}, height and width must be multiples of f = {factor}; "
        f"the nearest: {sizes}"
    )


class Decoder(nn.Module):
    """Latent to image; the Encoder's levels in reverse, with one more residual block in each.

    `in_channels` and `double_z` are the Encoder's and ignored: both take the same arguments.
    give_pre_end: stop in front of the last norm.  tanh_out: squash the image into (-1, 1).
    """

    def __init__(
        self,
        *,
        ch: Positive,
        out_ch: Positive,
        num_res_blocks: Positive,
        attn_resolutions: Sequence[Positive],
        in_channels: Positive,
        resolution: Positive,
        z_channels: Positive,
        ch_mult: Sequence[Positive] = (1, 2, 4, 8),
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        give_pre_end: bool = False,
        tanh_out: bool = False,
        double_z: bool = True,
        use_linear_attn: bool = False,
        attn_type: str = "vanilla",
        num_groups: Positive = 32,
    ) -> None:
        super().__init__()
        attn_type = "linear" if use_linear_attn else attn_type
        widths = [ch * mult for mult in ch_mult]
        attention = attention_levels(resolution, len(widths), attn_resolutions, attn_type)
        self.give_pre_end = give_pre_end
        self.tanh_out = tanh_out
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], attn_type, dropout, num_groups=num_groups)
        levels = []
        for i, (width, before) in enumerate(zip(widths, [*widths[1:], widths[-1]], strict=True)):
            pairs = [(before, width)] + [(width, width)] * num_res_blocks
            upsample = None if i == 0 else Upsample(width, resamp_with_conv)
            levels.append(
                Level(pairs, attention[i], dropout, upsample=upsample, num_groups=num_groups)
            )
        self.up = nn.ModuleList(levels)  # published: finest first, run last to first
        self.norm_out = group_norm(widths[0], groups=num_groups, eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """z: (B, z_channels, h, w). Returns (B, out_ch, f h, f w), about [-1, 1]."""
        h: Tensor = self.mid(self.conv_in(arranged(z)))
        for level in reversed(self.up):
            h = level(h)
        if self.give_pre_end:
            return h
        out: Tensor = self.conv_out(norm_silu(h, self.norm_out))
        return out.tanh() if self.tanh_out else out
