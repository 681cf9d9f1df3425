"""Pairs for super-resolution: images of another data set, and the same at a lower resolution."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ldm.config import ConfigError
from ldm.data.arrays import with_dtype
from ldm.data.degradation import FULL, LIGHT, Ranges, degraded
from ldm.data.resampling import Kernel, resampled
from ldm.data.transforms import Interpolation, resize
from ldm.data.wrapped import Wrapped, entry
from ldm.ranges import Positive
from ldm.spelling import require_known

__all__ = ["FILTERS", "Degradation", "Method", "SuperResolution", "low_resolution"]

Method = Literal["bicubic", "area", "nearest", "lanczos", "bilinear", "hamming"]
Degradation = Literal[
    Method,
    "cv_nearest",
    "cv_bilinear",
    "cv_bicubic",
    "cv_area",
    "cv_lanczos",
    "bsr",
    "bsr_light",
]

FILTERS: dict[Degradation, Interpolation] = {
    "nearest": "nearest",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
    "area": "box",
    "hamming": "hamming",
    "lanczos": "lanczos",
}

_KERNELS: dict[str, Kernel] = {f"cv_{kernel}": kernel for kernel in get_args(Kernel)}
_RANGES: dict[str, Ranges] = {"bsr": FULL, "bsr_light": LIGHT}


def low_resolution(
    image: NDArray[Any],
    factor: Positive = 4,
    method: Degradation = "bicubic",
    rng: np.random.Generator | None = None,
) -> NDArray[Any]:
    """An image (H, W, C) at 1 / factor of its size, (H / factor, W / factor, C), of the same type.

    A grey one (H, W) becomes (H / factor, W / factor). uint8 in 0..255 or float32 in [-1, 1];
    numbers are taken as they are stored (no gamma), uint8 is rounded and what a filter overshoots
    is clipped.

    method:
        `bicubic`, the degradation of SR3 (arXiv:2104.07636) and of section 4.4 of latent diffusion
            (arXiv:2112.10752), and `area`, `nearest`, `lanczos`, `bilinear`, `hamming`: Pillow's
            filters, all antialiased but `nearest`.
        `cv_nearest`, `cv_bilinear`, `cv_bicubic`, `cv_area`, `cv_lanczos`: OpenCV's, of which
            `cv_area` alone is antialiased (`ldm.data.resampling`).
        `bsr`, `bsr_light`: blur, noise and JPEG in random order and strength, strong or weak
            (`ldm.data.degradation`), drawn from `rng`.

    Raises ConfigError for a side that the factor does not divide, for an unknown method, and for
    `bsr` without a generator or of other than 1 or 3 channels.
    """
    require_known("method", method, get_args(Degradation))
    height, width = image.shape[:2]
    if factor < 1 or height % factor or width % factor:
        raise ConfigError(
            f"factor: {factor}; expected a divisor of both sides of the images, which are "
            f"{height} x {width} pixels"
        )
    pixels = image[..., None] if image.ndim == 2 else image
    if method in _RANGES:
        small = _blindly(pixels, factor, method, rng)
    elif method in _KERNELS:
        small = _of_type(
            resampled(pixels, height // factor, width // factor, _KERNELS[method]), pixels
        )
    else:
        small = resize(pixels, height // factor, width // factor, FILTERS[method])
    return small[..., 0] if image.ndim == 2 else small


def _blindly(
    pixels: NDArray[Any], factor: int, method: Degradation, rng: np.random.Generator | None
) -> NDArray[Any]:
    if rng is None:
        raise ConfigError(f"rng: none; expected a generator, which {method} draws from")
    is_bytes = pixels.dtype == np.uint8
    unit = (pixels / 255 if is_bytes else (pixels + 1) / 2).astype(np.float32)
    small = degraded(unit, factor, rng, _RANGES[method])
    return with_dtype(small, "uint8" if is_bytes else "float32")


def _of_type(numbers: NDArray[np.float32], like: NDArray[Any]) -> NDArray[Any]:
    """Numbers of a filter as pixels of the type of others: clipped, and rounded for uint8."""
    is_bytes = like.dtype == np.uint8
    clipped: NDArray[np.float32] = numbers.clip(0, 255) if is_bytes else numbers.clip(-1, 1)
    return np.rint(clipped).astype(np.uint8) if is_bytes else clipped


class SuperResolution(Wrapped):
    """The images of another data set, each with a low-resolution copy of itself.

    source: the data set; its `image` is (H, W, C) or (H, W), uint8 in 0..255 or float32 in [-1, 1].
    factor: how many pixels of a side become one.
    method: how, see `low_resolution`; `area` is the mean of factor x factor pixels.

    An item holds what the source's does and `LR_image` (H / factor, W / factor, C), of the same
    type. It is made of the image as the source yields it: cut and mirrored alike. What `bsr` and
    `bsr_light` draw is a function of seed, epoch and sample: training sees an image degraded
    otherwise in each epoch, validation always in the same way.

    Raises ConfigError for sides that the factor does not divide, for `bsr` of other than 1 or 3
    channels, and for a source that has an `LR_image` of its own, or no image.
    """

    def __init__(self, source: Any, factor: Positive = 4, method: Degradation = "bicubic") -> None:
        super().__init__(source)
        self.factor, self.method = factor, method
        first = self.source[0]
        if "LR_image" in first:
            raise ConfigError(f"source: {type(self.source).__name__} has an 'LR_image' of its own")
        self.changed(first, 0, np.random.default_rng(0))

    def changed(self, item: dict[str, Any], index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The item with its low-resolution copy."""
        image = entry(item, "image", self.source)
        return {**item, "LR_image": low_resolution(image, self.factor, self.method, rng)}
