"""Conditions that are images: maps brought to the latent's size, joined to x_t as channels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.conditioning.base import Embedder
from ldm.data.maps import NO_LABEL
from ldm.ranges import NonNegative, Positive
from ldm.tensor import expand_to, sent_to

__all__ = ["SpatialRescaler", "are_labels"]

Method = Literal["nearest", "bilinear", "bicubic", "area"]


class SpatialRescaler(Embedder):
    """Rescale a map in stages, then map its channels (paper, section 4.3.2: semantic synthesis).

    n_stages: how often the size is multiplied by `multiplier`; 2 stages of 0.5 suit f = 4.
    method: interpolation of `torch.nn.functional.interpolate`; corners are not aligned and there
        is no antialiasing, as published.
    in_channels, out_channels: with `out_channels`, a learned 1x1 convolution follows.

    A map is an image, or one-hot channels, or the labels themselves: integers (B, H, W) from 0 to
    in_channels - 1, other than uint8, which is an image. Labels are what their one-hot channels
    would be, without these ever being made. -1 is no label: all its channels are 0.
    """

    slot = "concat"
    slots = ("concat",)

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
        self.num_labels = in_channels
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
        """The same as a call; of labels (B, 1, H, W), as of their one-hot channels.

        Raises ValueError for labels out of range, on the CPU, where it costs no waiting.
        """
        if not are_labels(value):
            return self(value)  # type: ignore[no-any-return]
        if value.device.type == "cpu":
            lowest, highest = (int(each) for each in value.aminmax())
            if lowest < NO_LABEL or highest >= self.num_labels:
                found = f"labels {lowest} to {highest}"
                raise ValueError(f"a map has {found}, expected 0 to {self.num_labels - 1}")
        x = self._looked_up(value[:, 0])
        for _ in range(self.n_stages):
            x = self._rescale(x)
        bias = None if self.embed_dim is None else self.channel_mapper.bias
        return x if bias is None else x + expand_to(bias, x[0])

    def _looked_up(self, labels: Tensor) -> Tensor:
        """What the convolution makes of one-hot channels, but for its bias: (B, C, H, W).

        It acts on each pixel alone and rescaling on each channel alone, so either may come first;
        before it a map of many labels has few channels.
        """
        if self.embed_dim is None:
            table = torch.eye(self.num_labels, device=labels.device)
        else:
            table = self.channel_mapper.weight[:, :, 0, 0].T  # (in_channels, out_channels)
        nothing = table.new_zeros(1, table.shape[1])
        rows = F.embedding(labels.long() - NO_LABEL, torch.cat([nothing, table]))
        return rows.permute(0, 3, 1, 2)

    def drop(self, value: Tensor, dropped: Tensor) -> Tensor:
        """A dropped image is 0, and a dropped map has no labels."""
        if not are_labels(value):
            return super().drop(value, dropped)  # type: ignore[no-any-return]
        mask = expand_to(sent_to(dropped, value.device), value)
        return torch.where(mask, NO_LABEL, value)


def are_labels(value: Tensor) -> bool:
    """Whether a map's numbers are labels: integers, other than uint8, which are an image."""
    return not value.is_floating_point() and value.dtype != torch.uint8
