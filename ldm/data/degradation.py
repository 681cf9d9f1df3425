"""Blind degradation: blur, down-sampling, noise and JPEG in random order and strength.

Zhang et al. 2021, "Designing a Practical Degradation Model for Deep Blind Image Super-Resolution"
(arXiv:2103.14006), section 3, which the 2022 release calls `bsrgan`. Images are (H, W, C) float32
in 0..1; every draw comes from the generator that is given.

As in the paper, s being the factor:

* two blurs, one isotropic and one anisotropic, of 7 x 7, 9 x 9, ... or 21 x 21 pixels, beyond the
  edges by reflection. Width of the isotropic one 0.1 to 2.4 for s = 2 and to 2.8 for s = 4; the
  anisotropic one is turned by 0 to pi, its axes 0.5 to 6 wide for s = 2, to 8 for s = 4;
* down-sampling: nearest after a Gaussian of 21 x 21 pixels, 0.1 to 0.6 s wide, around the middle of
  the pixels that become one; bilinear; bicubic; down and up. Where s is 4, by 2 before all else
  with probability 0.25;
* noise of 1 to 25 levels of 255: grey (probability 0.4), colour (0.4), correlated channels (0.2);
* JPEG of quality 30 to 95, with probability 0.75, and once more at the end in any case.

Chosen here: the bounds for other factors (blurs up to 2 + 0.2 s and 4 + s wide, by 2 before all
else wherever s is 4 or more and even); `area` as a fifth way to down-sample, all with the same
probability; OpenCV's filters (`ldm.data.resampling`); a random covariance of the mean variance that
the level says; all numbers of `LIGHT`. Left out, as in most uses: the noise of a camera's sensor
and its processing, which the paper applies with probability 0.25.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm.config import ConfigError
from ldm.data.resampling import Kernel, resampled

__all__ = [
    "FULL",
    "LIGHT",
    "Ranges",
    "anisotropic",
    "blurred",
    "compressed",
    "degraded",
    "down_sampled",
    "isotropic",
    "nearest_shifted",
    "noisy",
]

Pixels: TypeAlias = NDArray[np.float32]  # (H, W, C) in 0..1
_Step: TypeAlias = Callable[[Pixels], Pixels]

_SIZES = range(7, 22, 2)  # of blurs, in pixels
_SMOOTH: tuple[Kernel, ...] = ("bilinear", "bicubic")
_WAYS = ("nearest", "bilinear", "bicubic", "area", "down and up")
_NOISES = {"grey": 0.4, "colour": 0.4, "correlated": 0.2}  # and their probabilities
_HALVED_FIRST = 0.25
_JPEG_BEFORE = 0.75
_EASY = 16  # pixels
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Ranges:
    """How strong a degradation may be.

    blur: what the widths of the two blurs, in pixels, are multiplied by.
    noise: least and most standard deviation, in levels of 255.  quality: of JPEG, likewise.
    """

    blur: float
    noise: tuple[int, int]
    quality: tuple[int, int]


FULL = Ranges(blur=1.0, noise=(1, 25), quality=(30, 95))
LIGHT = Ranges(blur=0.25, noise=(1, 2), quality=(80, 95))


def degraded(image: Pixels, factor: int, rng: np.random.Generator, ranges: Ranges = FULL) -> Pixels:
    """An image (H, W, C) in 0..1 as (H / factor, W / factor, C), of 8 bits as JPEG leaves it.

    The blurs, the down-sampling, noise and JPEG follow each other in a random order; then comes
    JPEG once more. Raises ConfigError for other than 1 or 3 channels, which JPEG cannot hold.
    """
    if image.shape[2] not in _MODES:
        raise ConfigError(
            f"method: blind degradation compresses images as JPEG, expected 1 or 3 channels, got "
            f"{image.shape[2]}"
        )
    height, width = (side // factor for side in image.shape[:2])
    if factor >= 4 and factor % 2 == 0 and rng.random() < _HALVED_FIRST:
        image = _clipped(resampled(image, height * factor // 2, width * factor // 2, _smooth(rng)))
        factor //= 2
    steps: list[_Step] = [
        lambda pixels: blurred(pixels, _isotropic(factor, ranges, rng)),
        lambda pixels: blurred(pixels, _anisotropic(factor, ranges, rng)),
        partial(down_sampled, factor=factor, rng=rng),
        partial(noisy, rng=rng, levels=ranges.noise),
        lambda pixels: _maybe_compressed(pixels, ranges, rng),
    ]
    for which in rng.permutation(len(steps)):
        image = _clipped(steps[which](image))
    assert image.shape[:2] == (height, width)
    return compressed(image, _quality(ranges, rng))


def isotropic(size: int, width: float, shift: float = 0.0) -> NDArray[np.float64]:
    """A Gaussian (size, size) of a standard deviation in pixels, its sum 1; the size is odd.

    shift: of its middle, right and down, in pixels.
    """
    line = _gaussian(size, width, shift)
    return np.outer(line, line)


def anisotropic(size: int, widths: tuple[float, float], angle: float) -> NDArray[np.float64]:
    """A Gaussian (size, size) with another standard deviation along each of its axes, its sum 1.

    widths: in pixels, along the first axis, which is at `angle` (radians) to the rows, and across.
    """
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse = turn @ np.diag(1 / np.square(widths)) @ turn.T
    offsets = np.arange(size) - size // 2
    places = np.stack(np.meshgrid(offsets, offsets), axis=-1)  # (size, size, 2): x, y
    return _normalized(-0.5 * np.einsum("hwi,ij,hwj->hw", places, inverse, places))


def blurred(image: Pixels, kernel: NDArray[np.float64]) -> Pixels:
    """The weighted mean around each pixel of (H, W, C), by reflection beyond the edges.

    kernel: (n, n), n odd; the weight of the pixel (i - n // 2, j - n // 2) away is kernel[i, j].
    """
    margin = kernel.shape[0] // 2
    height, width, channels = image.shape
    wide = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    # by Fourier transforms, four times as fast as sums over 21 x 21 pixels; no other length than
    # such a multiple, as some take much longer
    sides = [-(-side // _EASY) * _EASY for side in wide.shape[:2]]
    weights = np.conj(np.fft.rfft2(kernel.astype(np.float32), s=sides))
    planes = [np.fft.rfft2(wide[..., channel], s=sides) for channel in range(channels)]
    sums = [np.fft.irfft2(plane * weights, s=sides)[:height, :width] for plane in planes]
    return np.stack(sums, axis=2, dtype=np.float32)


def down_sampled(image: Pixels, factor: int, rng: np.random.Generator) -> Pixels:
    """An image (H, W, C) at 1 / factor of its size, in one of five ways.

    `down and up` goes to a / factor of the size first, a being 1/2 to factor, and from there to
    1 / factor, with bilinear or bicubic each time.
    """
    height, width = (side // factor for side in image.shape[:2])
    way = _WAYS[rng.integers(len(_WAYS))]
    if way == "nearest":
        return nearest_shifted(image, factor, rng.uniform(0.1, 0.6 * factor))
    if way == "down and up":
        between = rng.uniform(0.5, factor)
        high, wide = (max(1, round(side * between)) for side in (height, width))
        image = _clipped(resampled(image, high, wide, _smooth(rng)))
        way = _smooth(rng)
    assert way in get_args(Kernel)
    return resampled(image, height, width, way)  # type: ignore[arg-type]


def nearest_shifted(image: Pixels, factor: int, width: float) -> Pixels:
    """Every factor-th pixel of an image that was blurred around the middle of those left out.

    width: of the Gaussian (21 x 21), in pixels. Its middle is moved by (factor - 1) / 2 pixels, so
    that what is shown stays in its place.
    """
    kernel = isotropic(max(_SIZES), width, (factor - 1) / 2)
    return np.ascontiguousarray(blurred(image, kernel)[::factor, ::factor])


def noisy(image: Pixels, rng: np.random.Generator, levels: tuple[int, int]) -> Pixels:
    """An image (H, W, C) with Gaussian noise: grey, colour, or of correlated channels.

    levels: least and most standard deviation, a whole number of levels of 255. For correlated
    channels it is the root of their mean variance. The result is not clipped.
    """
    level = rng.integers(*levels, endpoint=True) / 255
    kind = rng.choice(list(_NOISES), p=list(_NOISES.values()))
    channels = image.shape[2]
    shape = (*image.shape[:2], 1 if kind == "grey" else channels)
    noise: Pixels = rng.standard_normal(shape, dtype=np.float32)
    if kind == "correlated":
        noise = noise @ _mixing(channels, rng)
    return image + np.float32(level) * noise


def compressed(image: Pixels, quality: int) -> Pixels:
    """What JPEG leaves of an image (H, W, 1) or (H, W, 3) in 0..1, quality 1 to 95.

    Colour has half the resolution along each side (4:2:0), as Pillow's default is.
    """
    levels = np.rint(image.clip(0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)
    with io.BytesIO() as file:
        picture.save(file, "JPEG", quality=quality)
        file.seek(0)
        with Image.open(file) as decoded:
            again = np.asarray(decoded).reshape(image.shape)
    return again.astype(np.float32) / np.float32(255)


def _isotropic(factor: int, ranges: Ranges, rng: np.random.Generator) -> NDArray[np.float64]:
    size, width = int(rng.choice(_SIZES)), rng.uniform(0.1, 2 + 0.2 * factor)
    return isotropic(size, ranges.blur * width)


def _anisotropic(factor: int, ranges: Ranges, rng: np.random.Generator) -> NDArray[np.float64]:
    size, angle = int(rng.choice(_SIZES)), rng.uniform(0, np.pi)
    first, second = ranges.blur * rng.uniform(0.5, 4 + factor, size=2)
    return anisotropic(size, (first, second), angle)


def _gaussian(size: int, width: float, shift: float) -> NDArray[np.float64]:
    offsets = np.arange(size) - size // 2 - shift
    return _normalized(-0.5 * (offsets / width) ** 2)


def _normalized(exponents: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Powers of e that add up to 1; the largest is 1 before, so that a narrow blur has a sum."""
    powers = np.exp(exponents - exponents.max())
    normalized: NDArray[np.float64] = powers / powers.sum()
    return normalized


def _mixing(channels: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A matrix A (C, C) that makes independent noise correlated; the trace of A^T A is C."""
    axes = np.linalg.qr(rng.standard_normal((channels, channels)))[0]
    variances = rng.uniform(0, 1, channels)
    deviations = np.sqrt(variances / variances.mean())
    mixing: NDArray[np.float32] = (deviations[:, None] * axes).astype(np.float32)
    return mixing


def _maybe_compressed(image: Pixels, ranges: Ranges, rng: np.random.Generator) -> Pixels:
    return compressed(image, _quality(ranges, rng)) if rng.random() < _JPEG_BEFORE else image


def _quality(ranges: Ranges, rng: np.random.Generator) -> int:
    return int(rng.integers(*ranges.quality, endpoint=True))


def _smooth(rng: np.random.Generator) -> Kernel:
    return _SMOOTH[rng.integers(len(_SMOOTH))]


def _clipped(image: NDArray[Any]) -> Pixels:
    clipped: Pixels = image.clip(0, 1)
    return clipped
