"""Conditions that are images: maps brought to the latent's size, joined to x_t as channels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from ldm.conditioning.base import Embedder
from ldm.ranges import NonNegative, Positive

__all__ = ["SpatialRescaler"]

Method = Literal["nearest", "bilinear", "bicubic", "area"]


class SpatialRescaler(Embedder):
    """Rescale a map in stages, then map its channels (paper, section 4.3.2: semantic synthesis).

    n_stages: how often the size is multiplied by `multiplier`; 2 stages of 0.5 suit f = 4.
    method: interpolation of `torch.nn.functional.interpolate`; corners are not aligned and there
        is no antialiasing, as published.
    in_channels, out_channels: with `out_channels`, a learned 1x1 convolution follows.
    """

    slot = "concat"

    def __init__(
        self,
        n_stages: NonNegative = 1,
        method: Method = "bilinear",
        multiplier: float = 0.5,
        in_channels: Positive = 3,
        out_channels: Positive | None = None,
        bias: bool = False,
        key: str | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(key=key, drop_rate=drop_rate)
        if n_stages < 0:
            raise ValueError(f"n_stages is {n_stages}; expected 0 or more")
        self.embed_dim = out_channels
        self.n_stages = n_stages
        self._rescale: Callable[[Tensor], Tensor] = partial(
            F.interpolate, scale_factor=multiplier, mode=method
        )
        if out_channels is not None:
            self.channel_mapper = nn.Conv2d(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out_channels or C, H * multiplier^n_stages, ...)."""
        for _ in range(self.n_stages):
            x = self._rescale(x)
        return self.channel_mapper(x) if self.embed_dim is not None else x

    def encode(self, value: Tensor) -> Tensor:
        """The same as a call."""
        return self(value)  # type: ignore[no-any-return]
