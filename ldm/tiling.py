"""Overlapping windows over an image, blended with weights that sum to one.

A function of images that is too large for the memory, or trained at one size, is applied window by
window; where windows overlap, the results are averaged with weights that fall towards the border of
each window, so no seam shows. Used for first stages and for denoisers alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

__all__ = ["BorderWeights", "Weights", "Window", "border_distance", "tiled_apply", "windows"]

# (height, width) of a window to its blending weights (height, width), all positive
Weights = Callable[[int, int], Tensor]


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of an image, in pixels or latent cells."""

    top: int
    left: int
    height: int
    width: int

    def of(self, x: Tensor) -> Tensor:
        """The part of x (..., H, W) inside the window, as a view."""
        return x[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def scaled(self, scale: Fraction) -> Window:
        """The same rectangle in an image `scale` times as large.

        Raises ValueError when a side or corner would not be a whole number.
        """
        sides = [scale * side for side in (self.top, self.left, self.height, self.width)]
        if any(side.denominator != 1 for side in sides):
            raise ValueError(f"{self} times {scale} is not whole: use multiples of {1 / scale}")
        return Window(*map(int, sides))


@dataclass(frozen=True)
class BorderWeights:
    """Weights that grow linearly from the border of a window to its middle.

    The distance to the nearest border (`border_distance`) clipped to [clip_min, clip_max]; clip_min
    is above 0 so that a pixel seen by one window only keeps a weight.
    """

    clip_min: float = 0.01
    clip_max: float = 0.5

    def __post_init__(self) -> None:
        """Refuse limits that would divide by zero."""
        if not 0 < self.clip_min <= self.clip_max:
            raise ValueError(
                f"expected 0 < clip_min <= clip_max, got {self.clip_min} and {self.clip_max}"
            )

    def __call__(self, height: int, width: int) -> Tensor:
        """Weights (height, width) of one window, float32."""
        return border_distance(height, width).clamp(self.clip_min, self.clip_max)


def border_distance(height: int, width: int) -> Tensor:
    """Distance of each pixel to the nearest border: 0 at the border, at most 0.5, (height, width).

    Each axis is measured in its own length, so that opposite borders are 1 apart.
    """

    def along(size: int) -> Tensor:
        position = torch.arange(size, dtype=torch.float64) / max(size - 1, 1)
        return torch.minimum(position, 1 - position)

    return torch.minimum(along(height)[:, None], along(width)[None, :]).float()


def windows(
    size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]
) -> list[Window]:
    """Windows that cover an image of `size` (H, W), row by row.

    The last window of a row or column lies flush with the border and overlaps more; a window larger
    than the image is cut to it. Raises ValueError when a stride leaves gaps.
    """
    tops, lefts = (_starts(*axis) for axis in zip(size, window, stride, strict=True))
    height, width = (min(pair) for pair in zip(size, window, strict=True))
    return [Window(top, left, height, width) for top in tops for left in lefts]


def tiled_apply(
    fn: Callable[[Tensor, Window], Tensor],
    x: Tensor,
    *,
    window: tuple[int, int],
    stride: tuple[int, int],
    scale: Fraction | int = 1,
    weights: Weights | None = None,
) -> Tensor:
    """Apply a function of images to overlapping windows and blend what it returns.

    fn: (crop (B, C, h, w), its window in x) to (B, D, h * scale, w * scale).
    x: (B, C, H, W).  window, stride: (height, width) in pixels of x, used one at a time, so the
    memory that fn needs is that of one window.
    scale: size of the output over the size of the input, such as 8 for a decoder with f = 8 and
    Fraction(1, 8) for its encoder.  weights: by default `BorderWeights()`.
    Returns (B, D, H * scale, W * scale), in float32 or wider while blending, in fn's dtype after.

    Raises ValueError for a stride that leaves gaps and for windows that do not scale to whole
    pixels.
    """
    scale, weights = Fraction(scale), weights or BorderWeights()
    height, width = x.shape[-2:]
    whole = Window(0, 0, height, width).scaled(scale)
    total, weight_sum = None, torch.zeros(whole.height, whole.width, device=x.device)
    parts = windows((height, width), window, stride)
    with x.device:  # made where they are used: to send them there would wait for it
        size = parts[0].scaled(scale)  # all are of one
        weight = weights(size.height, size.width).to(x.device)
    for part in parts:
        target, value = part.scaled(scale), fn(part.of(x), part)
        if total is None:
            blend_dtype = torch.promote_types(value.dtype, torch.float32)
            total = value.new_zeros(*value.shape[:-2], *weight_sum.shape, dtype=blend_dtype)
        target.of(total).add_(value * weight)
        target.of(weight_sum).add_(weight)
    assert total is not None, "an image has at least one window"
    return total.div_(weight_sum).to(value.dtype)


def _starts(size: int, window: int, stride: int) -> list[int]:
    if not 0 < stride <= window:
        raise ValueError(f"stride {stride} leaves gaps: expected 1 to {window}, the window")
    last = max(size - window, 0)
    return [*range(0, last, stride), last]
