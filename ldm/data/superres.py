"""Pairs for super-resolution: images of another data set, and the same at a lower resolution."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ldm.config import ConfigError
from ldm.data.transforms import Interpolation, resize
from ldm.data.wrapped import Wrapped, entry
from ldm.ranges import Positive
from ldm.spelling import require_known

__all__ = ["FILTERS", "Method", "SuperResolution", "low_resolution"]

Method = Literal["bicubic", "area", "nearest", "lanczos", "bilinear", "hamming"]

FILTERS: dict[Method, Interpolation] = {
    "nearest": "nearest",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
    "area": "box",
    "hamming": "hamming",
    "lanczos": "lanczos",
}


def low_resolution(
    image: NDArray[Any], factor: Positive = 4, method: Method = "bicubic"
) -> NDArray[Any]:
    """An image (H, W, C) at 1 / factor of its size, (H / factor, W / factor, C), of the same type.

    A grey one (H, W) becomes (H / factor, W / factor).

    Bicubic is the degradation of SR3 (arXiv:2104.07636) and of section 4.4 of latent diffusion
    (arXiv:2112.10752). The filters are Pillow's, on numbers as they are stored (no gamma); all are
    antialiased but `nearest`; uint8 is rounded and what a filter overshoots is clipped.

    Raises ConfigError for a side that the factor does not divide, and for an unknown method.
    """
    require_known("method", method, get_args(Method))
    height, width = image.shape[:2]
    if factor < 1 or height % factor or width % factor:
        raise ConfigError(
            f"factor: {factor}; expected a divisor of both sides of the images, which are "
            f"{height} x {width} pixels"
        )
    pixels = image[..., None] if image.ndim == 2 else image
    small = resize(pixels, height // factor, width // factor, FILTERS[method])
    return small[..., 0] if image.ndim == 2 else small


class SuperResolution(Wrapped):
    """The images of another data set, each with a low-resolution copy of itself.

    source: the data set; its `image` is (H, W, C) or (H, W), uint8 in 0..255 or float32 in [-1, 1].
    factor: how many pixels of a side become one.
    method: how, see `low_resolution`; `area` is the mean of factor x factor pixels.

    An item holds what the source's does and `LR_image` (H / factor, W / factor, C), of the same
    type. It is made of the image as the source yields it: cut and mirrored alike.

    Raises ConfigError for sides that the factor does not divide, and for a source that has an
    `LR_image` of its own, or no image.
    """

    def __init__(self, source: Any, factor: Positive = 4, method: Method = "bicubic") -> None:
        super().__init__(source)
        self.factor, self.method = factor, method
        first = self.source[0]
        if "LR_image" in first:
            raise ConfigError(f"source: {type(self.source).__name__} has an 'LR_image' of its own")
        self._small(first)

    def changed(self, item: dict[str, Any], index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The item with its low-resolution copy."""
        return {**item, "LR_image": self._small(item)}

    def _small(self, item: dict[str, Any]) -> NDArray[Any]:
        return low_resolution(entry(item, "image", self.source), self.factor, self.method)
