"""The way down of the U-Net with a pooling head: a classifier or an image encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm.nets.attention import AttentionPool2d, heads_of
from ldm.nets.blocks import require_images
from ldm.nets.linear import Linear
from ldm.nets.norm import NormSiLU, group_norm
from ldm.nets.unet import Stages, TimeEmbedding
from ldm.nets.weights import zeroed
from ldm.ranges import Positive
from ldm.spelling import require_known

__all__ = ["EncoderUNetModel"]

_POOLS = ("adaptive", "attention", "spatial", "spatial_v2")


class EncoderUNetModel(nn.Module):
    """Half a U-Net, told the time: appendix H of ADM (arXiv:2105.05233).

    pool: "adaptive" is the mean over positions, "attention" is `AttentionPool2d` (the input must
    then be image_size x image_size), "spatial" and "spatial_v2" are two linear layers on the
    means of every block.  Accepted and without effect: `use_fp16`, `num_heads_upsample`.
    """

    def __init__(
        self,
        image_size: Positive,
        in_channels: Positive,
        model_channels: Positive,
        out_channels: Positive,
        num_res_blocks: Positive,
        attention_resolutions: Sequence[Positive],
        dropout: float = 0.0,
        channel_mult: Sequence[Positive] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        pool: str = "adaptive",
    ) -> None:
        super().__init__()
        require_images(dims)
        require_known("pool", pool, _POOLS)
        stages = Stages(
            model_channels=model_channels,
            channel_mult=channel_mult,
            num_res_blocks=num_res_blocks,
            attention_resolutions=attention_resolutions,
            dropout=dropout,
            conv_resample=conv_resample,
            use_checkpoint=use_checkpoint,
            heads=(num_heads, num_head_channels),
            use_scale_shift_norm=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            use_new_attention_order=use_new_attention_order,
        )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.pool = pool
        self.time_embed = TimeEmbedding(model_channels, stages.emb_channels)
        self.input_blocks, widths = stages.encoder(in_channels)
        self.middle_block = stages.middle()
        if pool.startswith("spatial"):
            self.out = _means_head(sum(widths) + stages.widths[-1], out_channels, pool)
        else:
            self.out = _map_head(stages, image_size, out_channels, pool)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """x: (B, in_channels, H, W).  timesteps: (B,). Returns (B, out_channels)."""
        emb = self.time_embed(timesteps)
        h, means = x, []
        for block in [*self.input_blocks, self.middle_block]:
            h = block(h, emb)
            means.append(h.mean(dim=(2, 3)))
        out: Tensor = self.out(torch.cat(means, dim=1) if self.pool.startswith("spatial") else h)
        return out


def _map_head(stages: Stages, image_size: int, out_channels: int, pool: str) -> nn.Sequential:
    ch = stages.widths[-1]
    if pool == "adaptive":
        conv = zeroed(nn.Conv2d(ch, out_channels, 1))
        return NormSiLU(ch, nn.AdaptiveAvgPool2d(1), conv, nn.Flatten())
    size = image_size // 2 ** (len(stages.widths) - 1)
    head_channels = ch // heads_of(ch, *stages.heads)
    return NormSiLU(ch, AttentionPool2d(size, ch, head_channels, out_channels))


def _means_head(features: int, out_channels: int, pool: str) -> nn.Sequential:
    between = [nn.ReLU()] if pool == "spatial" else [group_norm(2048), nn.SiLU()]
    return nn.Sequential(Linear(features, 2048), *between, Linear(2048, out_channels))
