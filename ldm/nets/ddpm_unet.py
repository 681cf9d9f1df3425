"""The U-Net of DDPM (arXiv:2006.11239, appendix B), built of the autoencoder's blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.nets.autoencoder import attention_levels
from ldm.nets.autoencoder_blocks import Downsample, Level, Middle, Upsample
from ldm.nets.blocks import require_size
from ldm.nets.embeddings import sine_first_timestep_embedding
from ldm.nets.linear import Linear
from ldm.nets.norm import group_norm, norm_silu
from ldm.ranges import Positive

__all__ = ["Model"]


class Model(nn.Module):
    """Denoiser whose condition, if any, is joined to its input's channels.

    attn_resolutions: the sizes, counted from `resolution`, at which there is attention.
    in_channels counts the condition's channels too.
    Raises ValueError when there is no level.
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
        ch_mult: Sequence[Positive] = (1, 2, 4, 8),
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        use_timestep: bool = True,
        use_linear_attn: bool = False,
        attn_type: str = "vanilla",
    ) -> None:
        super().__init__()
        attn_type = "linear" if use_linear_attn else attn_type
        widths = [ch * mult for mult in ch_mult]
        last = len(widths) - 1
        attention = attention_levels(resolution, len(widths), attn_resolutions, attn_type)
        temb_channels = 4 * ch
        self.in_channels, self.out_channels = in_channels, out_ch
        self.downsample_factor = 2**last
        self.use_timestep = use_timestep
        if use_timestep:
            self.temb = _TimeEmbedding(ch, temb_channels)
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down, skips = nn.ModuleList(), [ch]
        for i, width in enumerate(widths):
            pairs = [(skips[-1], width)] + [(width, width)] * (num_res_blocks - 1)
            down = None if i == last else Downsample(width, resamp_with_conv)
            self.down.append(Level(pairs, attention[i], dropout, temb_channels, downsample=down))
            skips += [width] * (num_res_blocks + (i != last))
        self.mid = Middle(widths[-1], attn_type, dropout, temb_channels)
        levels: list[Level] = []
        before = widths[-1]
        for i, width in reversed(list(enumerate(widths))):
            inputs = [before] + [width] * num_res_blocks
            pairs = [(a + skips.pop(), width) for a in inputs]
            up = None if i == 0 else Upsample(width, resamp_with_conv)
            levels.insert(0, Level(pairs, attention[i], dropout, temb_channels, upsample=up))
            before = width
        self.up = nn.ModuleList(levels)  # published: finest first, run last to first
        self.norm_out = group_norm(ch * ch_mult[0], eps=1e-6)
        self.conv_out = nn.Conv2d(ch * ch_mult[0], out_ch, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W), H and W multiples of `downsample_factor`.  t: (B,).

        context: (B, C', H, W), C + C' = in_channels.
        Returns (B, out_ch, H, W).
        Raises ValueError for another size, and when t is missing.
        """
        require_size(x, self.downsample_factor)
        temb = None
        if self.use_timestep:
            if t is None:
                raise ValueError("t, the time of each example, is missing (use_timestep=True)")
            temb = self.temb(t)
        h = self.conv_in(x if context is None else torch.cat([x, context], dim=1))
        skips = [h]
        for i, level in enumerate(cast("list[Level]", list(self.down))):
            for j in range(len(level.block)):
                h = level.step(j, h, temb)
                skips.append(h)
            if i != len(self.down) - 1:
                h = level.resample(h)
                skips.append(h)
        h = self.mid(h, temb)
        for level in reversed(cast("list[Level]", list(self.up))):
            for j in range(len(level.block)):
                h = level.step(j, torch.cat([h, skips.pop()], dim=1), temb)
            h = level.resample(h)
        out: Tensor = self.conv_out(norm_silu(h, self.norm_out))
        return out


class _TimeEmbedding(nn.Module):
    """Two linear layers on top of the sinusoidal embedding of the time."""

    def __init__(self, ch: int, temb_channels: int) -> None:
        super().__init__()
        self.ch = ch
        self.dense = nn.ModuleList(
            [Linear(ch, temb_channels), Linear(temb_channels, temb_channels)]
        )

    def forward(self, t: Tensor) -> Tensor:
        first, second = self.dense
        temb = sine_first_timestep_embedding(t, self.ch).to(next(self.parameters()).dtype)
        out: Tensor = second(F.silu(first(temb)))
        return out
