"""The denoising U-Net: residual blocks with attention, told the time, a class and a context.

The network of ADM (arXiv:2105.05233) with the spatial transformers of Latent Diffusion Models
(arXiv:2112.10752, sec. 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm.nets.attention import AttentionBlock, heads_of
from ldm.nets.blocks import (
    Downsample,
    ResBlock,
    TimestepEmbedSequential,
    Upsample,
    require_images,
    require_size,
)
from ldm.nets.embeddings import timestep_embedding
from ldm.nets.linear import Linear
from ldm.nets.norm import NormSiLU, group_norm
from ldm.nets.transformer import SpatialTransformer
from ldm.nets.weights import zeroed
from ldm.ranges import Positive

__all__ = ["Stages", "TimeEmbedding", "UNetModel"]


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The levels of a U-Net: how wide they are and which layers they are made of.

    Level i has `model_channels * channel_mult[i]` channels and is down-sampled by 2^i.
    Raises ValueError for a combination of arguments that no network has.
    """

    model_channels: int
    channel_mult: Sequence[int]
    num_res_blocks: int
    attention_resolutions: Sequence[int]  # down-sampling factors, not sizes
    dropout: float = 0.0
    conv_resample: bool = True
    use_checkpoint: bool = False
    heads: tuple[int, int]  # their number, and the width of each, which decides; -1: not given
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    transformer_depth: int = 1
    context_dim: int | None = None  # of spatial transformers; None for plain attention

    def __post_init__(self) -> None:
        """Check what the layers themselves cannot."""
        if self.heads == (-1, -1):
            raise ValueError("num_heads or num_head_channels must be given, both are -1")
        if not self.channel_mult or min(self.channel_mult) < 1:
            raise ValueError(f"channel_mult={self.channel_mult}: expected one factor per level")

    @property
    def widths(self) -> list[int]:
        """Channels of each level, finest first."""
        return [self.model_channels * mult for mult in self.channel_mult]

    @property
    def emb_channels(self) -> int:
        """Width of the time embedding."""
        return 4 * self.model_channels

    def residual(
        self, channels: int, out_channels: int, *, up: bool = False, down: bool = False
    ) -> ResBlock:
        """A residual block."""
        return ResBlock(
            channels,
            self.emb_channels,
            self.dropout,
            out_channels,
            use_scale_shift_norm=self.use_scale_shift_norm,
            use_checkpoint=self.use_checkpoint,
            up=up,
            down=down,
        )

    def attention(self, channels: int, num_heads: int | None = None) -> nn.Module:
        """Self-attention, or a spatial transformer when there is a context."""
        number, width = self.heads
        heads = heads_of(channels, num_heads or number, width)
        if self.context_dim is not None:
            return SpatialTransformer(
                channels,
                heads,
                channels // heads,
                self.transformer_depth,
                context_dim=self.context_dim,
                use_checkpoint=self.use_checkpoint,
            )
        return AttentionBlock(
            channels,
            heads,
            use_checkpoint=self.use_checkpoint,
            use_new_attention_order=self.use_new_attention_order,
        )

    def downsample(self, channels: int) -> nn.Module:
        """What leads to the next coarser level."""
        if self.resblock_updown:
            return self.residual(channels, channels, down=True)
        return Downsample(channels, self.conv_resample)

    def upsample(self, channels: int) -> nn.Module:
        """What leads to the next finer level."""
        if self.resblock_updown:
            return self.residual(channels, channels, up=True)
        return Upsample(channels, self.conv_resample)

    def encoder(self, in_channels: int) -> tuple[nn.ModuleList, list[int]]:
        """The way down, and the width of each of its outputs (the skip connections)."""
        ch = self.model_channels
        blocks = [TimestepEmbedSequential(nn.Conv2d(in_channels, ch, 3, padding=1))]
        skips = [ch]
        for level, width in enumerate(self.widths):
            for _ in range(self.num_res_blocks):
                layers: list[nn.Module] = [self.residual(ch, width)]
                if 2**level in self.attention_resolutions:
                    layers.append(self.attention(width))
                blocks.append(TimestepEmbedSequential(*layers))
                skips.append(ch := width)
            if level != len(self.widths) - 1:
                blocks.append(TimestepEmbedSequential(self.downsample(ch)))
                skips.append(ch)
        return nn.ModuleList(blocks), skips

    def middle(self) -> TimestepEmbedSequential:
        """The coarsest level's own blocks."""
        ch = self.widths[-1]
        return TimestepEmbedSequential(
            self.residual(ch, ch), self.attention(ch), self.residual(ch, ch)
        )

    def decoder(self, skips: list[int], num_heads: int | None = None) -> nn.ModuleList:
        """The way up; each block takes one skip connection, the last made first."""
        skips, ch = list(skips), self.widths[-1]
        blocks = []
        for level, width in reversed(list(enumerate(self.widths))):
            for i in range(self.num_res_blocks + 1):
                layers: list[nn.Module] = [self.residual(ch + skips.pop(), width)]
                ch = width
                if 2**level in self.attention_resolutions:
                    layers.append(self.attention(ch, num_heads))
                if level and i == self.num_res_blocks:
                    layers.append(self.upsample(ch))
                blocks.append(TimestepEmbedSequential(*layers))
        return nn.ModuleList(blocks)


class TimeEmbedding(nn.Sequential):
    """Two linear layers on top of the sinusoidal embedding of the time."""

    def __init__(self, model_channels: int, emb_channels: int) -> None:
        super().__init__(
            Linear(model_channels, emb_channels), nn.SiLU(), Linear(emb_channels, emb_channels)
        )
        self.model_channels = model_channels

    def forward(self, timesteps: Tensor) -> Tensor:
        """timesteps: (B,). Returns (B, emb_channels)."""
        emb = timestep_embedding(timesteps, self.model_channels)
        emb = emb.to(next(self.parameters()).dtype)
        for layer in self:
            emb = layer(emb)
        return emb


class UNetModel(nn.Module):
    """U-Net eps_theta(x_t, t, c) of a diffusion model.

    attention_resolutions: the down-sampling factors (1, 2, 4, ...) of the levels with attention;
    the middle has it always.  num_head_channels decides over num_heads where both are given.
    num_heads_upsample: heads of the way up (plain attention, `legacy`, no num_head_channels).
    num_classes: the net takes class labels y.  adm_in_channels: or vectors y of this width, whose
    projection joins the time's, as in GLIDE (arXiv:2112.10741, section 3.1).
    context_dim: the width of the context its spatial transformers attend to.
    n_embed: predicts that many codebook logits per position.

    Accepted and without effect: `image_size` (any size is taken), `use_fp16` (autocast does that).
    Raises ValueError for widths, heads or switches that do not fit together.
    """

    def __init__(
        self,
        image_size: Positive | Sequence[Positive],
        in_channels: Positive,
        model_channels: Positive,
        out_channels: Positive,
        num_res_blocks: Positive,
        attention_resolutions: Sequence[Positive],
        dropout: float = 0.0,
        channel_mult: Sequence[Positive] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        num_classes: Positive | None = None,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = -1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        use_spatial_transformer: bool = False,
        transformer_depth: Positive = 1,
        context_dim: Positive | None = None,
        n_embed: Positive | None = None,
        legacy: bool = True,
        adm_in_channels: Positive | None = None,
    ) -> None:
        super().__init__()
        require_images(dims)
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
            transformer_depth=transformer_depth,
            context_dim=_context_width(use_spatial_transformer, context_dim),
        )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_classes, self.adm_in_channels = num_classes, adm_in_channels
        # published: only legacy plain attention looks at num_heads_upsample
        has_own_heads = legacy and context_dim is None and num_heads_upsample != -1
        self._build(stages, num_heads_upsample if has_own_heads else None, n_embed)

    def _build(self, stages: Stages, upsample_heads: int | None, n_embed: int | None) -> None:
        """Make the layers, in the published order of their parameters."""
        ch, emb_channels = stages.model_channels, stages.emb_channels
        if stages.channel_mult[0] != 1:
            # published: the output layers are built for model_channels, not for the first level
            raise ValueError(f"channel_mult={list(stages.channel_mult)} must begin with 1")
        self.model_channels, self.context_dim = ch, stages.context_dim
        self.downsample_factor = 2 ** (len(stages.channel_mult) - 1)
        self.predict_codebook_ids = n_embed is not None

        self.time_embed = TimeEmbedding(ch, emb_channels)
        self.label_emb = _label_embedding(self.num_classes, self.adm_in_channels, emb_channels)
        self.input_blocks, skips = stages.encoder(self.in_channels)
        self.middle_block = stages.middle()
        self.output_blocks = stages.decoder(skips, upsample_heads)
        self.out = NormSiLU(ch, zeroed(nn.Conv2d(ch, self.out_channels, 3, padding=1)))
        if n_embed is not None:
            self.id_predictor = nn.Sequential(group_norm(ch), nn.Conv2d(ch, n_embed, 1))

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        """Predict from noisy x.

        x: (B, in_channels, H, W), H and W multiples of `downsample_factor`.  timesteps: (B,), whole
        or fractional.  context: (B, M, context_dim).  y: class labels (B,), or vectors
        (B, adm_in_channels).
        Returns (B, out_channels, H, W), or logits (B, n_embed, H, W).
        Raises ValueError for a size, context or y that the net was not built for.
        """
        self._check_inputs(x, context, y)
        emb = self.time_embed(timesteps)
        if self.label_emb is not None:
            emb = emb + self.label_emb(y)
        h, skips = x, []
        for block in self.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, context)
        head: nn.Module = self.id_predictor if self.predict_codebook_ids else self.out
        out: Tensor = head(h)
        return out.to(x.dtype)

    def _check_inputs(self, x: Tensor, context: Tensor | None, y: Tensor | None) -> None:
        if x.shape[1] != self.in_channels:
            raise ValueError(f"x has {x.shape[1]} channels, this U-Net takes {self.in_channels}")
        require_size(x, self.downsample_factor)
        if (y is None) != (self.label_emb is None):
            raise ValueError("y must be given exactly when num_classes or adm_in_channels is set")
        if (context is None) != (self.context_dim is None):
            raise ValueError("a context must be given exactly when context_dim is set")
        if context is not None and context.shape[-1] != self.context_dim:
            raise ValueError(
                f"context is {context.shape[-1]} wide, this U-Net takes {self.context_dim}"
            )


def _context_width(use_spatial_transformer: bool, context_dim: int | None) -> int | None:
    """`context_dim`; ValueError unless it is given exactly with spatial transformers."""
    if use_spatial_transformer and context_dim is None:
        raise ValueError("use_spatial_transformer needs context_dim, the width of the context")
    if context_dim is not None and not use_spatial_transformer:
        raise ValueError(
            f"context_dim={context_dim} has no effect unless use_spatial_transformer=True"
        )
    return context_dim


def _label_embedding(
    num_classes: int | None, adm_in_channels: int | None, emb_channels: int
) -> nn.Module | None:
    """What makes y, class labels or vectors, as wide as the time's embedding; None without y."""
    if num_classes is not None and adm_in_channels is not None:
        raise ValueError("num_classes and adm_in_channels are two kinds of y; give one")
    if num_classes is not None:
        return nn.Embedding(num_classes, emb_channels)
    if adm_in_channels is None:
        return None
    layers = (Linear(adm_in_channels, emb_channels), nn.SiLU(), Linear(emb_channels, emb_channels))
    return nn.Sequential(nn.Sequential(*layers))  # published: a sequence within a sequence
