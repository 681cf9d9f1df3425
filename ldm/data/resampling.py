"""Resampling with OpenCV's filters: between pixels' middles, and without antialiasing.

Written from OpenCV's documentation. The coefficients are not rounded to 11 bits as OpenCV's are for
uint8, so a grey level may differ by one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Kernel", "resampled", "taps"]

Kernel = Literal["nearest", "bilinear", "bicubic", "area", "lanczos"]
Taps: TypeAlias = tuple[NDArray[np.int64], NDArray[np.float32]]

_WIDTHS: dict[Kernel, int] = {"bilinear": 2, "bicubic": 4, "lanczos": 8}  # in pixels
_SHARPNESS = -0.75  # a of Keys's cubic; Pillow and torch's antialiased one have -0.5


def resampled(image: NDArray[Any], height: int, width: int, kernel: Kernel) -> NDArray[np.float32]:
    """An image (H, W, C) at another size, (height, width, C) float32 in the numbers it has.

    Nothing is rounded or clipped: bicubic and Lanczos overshoot. See `taps` for the filters.
    """
    rows, row_weights = taps(image.shape[0], height, kernel)
    columns, column_weights = taps(image.shape[1], width, kernel)
    tall = np.zeros((height, *image.shape[1:]), np.float32)
    for tap in range(rows.shape[1]):
        tall += row_weights[:, tap, None, None] * image[rows[:, tap]]
    small = np.zeros((height, width, *image.shape[2:]), np.float32)
    for tap in range(columns.shape[1]):
        small += column_weights[:, tap, None] * tall[:, columns[:, tap]]
    return small


@lru_cache(maxsize=64)
def taps(given: int, wanted: int, kernel: Kernel) -> Taps:
    """Which of `given` pixels in a line each of `wanted` ones is made of, and with which weights.

    Indices and weights, both (wanted, number of taps). The weights of a pixel add up to 1. Beyond
    the ends, the last pixel goes on. With s = given / wanted and x = s (i + 1/2) - 1/2:

    nearest: the pixel floor(s i).
    bilinear, bicubic, lanczos: the 2, 4 or 8 pixels around x, as many when the image is made
        smaller. Bicubic is Keys's with a = -0.75; Lanczos is sinc(d) sinc(d / 4), its sum made 1.
    area: the mean of what lies between s i and s (i + 1), by the share of each pixel.
    """
    scale = given / wanted
    if kernel == "nearest":
        index = np.floor(np.arange(wanted) * scale).astype(np.int64)[:, None]
        weights = np.ones((wanted, 1))
    elif kernel == "area":
        index, weights = _shares(wanted, scale)
    else:
        middle = scale * (np.arange(wanted)[:, None] + 0.5) - 0.5
        half = _WIDTHS[kernel] // 2
        index = np.floor(middle).astype(np.int64) + np.arange(1 - half, half + 1)
        weights = _weights(np.abs(middle - index), kernel)
    weights = weights / weights.sum(axis=1, keepdims=True)
    found = (index.clip(0, given - 1), weights.astype(np.float32))
    for array in found:
        array.flags.writeable = False  # every later call gets the same arrays
    return found


def _weights(distance: NDArray[np.float64], kernel: Kernel) -> NDArray[np.float64]:
    """The filter's height, at most half its width from the middle."""
    d, a = distance, _SHARPNESS
    if kernel == "bilinear":
        return 1 - d
    if kernel == "bicubic":
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        return np.where(d <= 1, near, a * (d**3 - 5 * d**2 + 8 * d - 4))
    lanczos: NDArray[np.float64] = np.sinc(d) * np.sinc(d / 4)
    return lanczos


def _shares(wanted: int, scale: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The pixels that each window of `scale` pixels meets, and how much of each it covers."""
    first = np.arange(wanted)[:, None] * scale
    index = np.floor(first).astype(np.int64) + np.arange(int(np.ceil(scale)) + 1)
    covered = np.minimum(index + 1, first + scale) - np.maximum(index, first)
    return index, covered.clip(0)
