"""Crops, sizes and flips: pure functions of arrays (H, W, C) and an explicit generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from ldm.config import ConfigError, did_you_mean

__all__ = ["Framing", "Interpolation", "Window", "crop", "resize", "side_lengths"]

_LONGEST = 2**15  # pixels of a side: such an image has 3 GB

Pixels = NDArray[Any]  # uint8 in 0..255, or float32 in [-1, 1]

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]


class Window(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def crop(image: Pixels, height: int, width: int, rng: np.random.Generator | None = None) -> Pixels:
    """A window of an image (H, W, C), in the centre, or anywhere when given a generator."""
    return _cut(image, _window(image.shape[0], image.shape[1], height, width, rng))


def _window(
    rows: int, columns: int, height: int, width: int, rng: np.random.Generator | None
) -> Window:
    """Where a window is cut out of so many rows and columns."""
    spare: NDArray[np.int64] = np.subtract((rows, columns), (height, width))
    top, left = spare // 2 if rng is None else rng.integers(0, spare, endpoint=True)
    return Window(int(top), int(left), height, width)


def _cut(image: Pixels, window: Window) -> Pixels:
    top, left, height, width = window
    return image[top : top + height, left : left + width]


def resize(
    image: Pixels, height: int, width: int, interpolation: Interpolation = "bicubic"
) -> Pixels:
    """An image (H, W, C) at another size, anti-aliased unless `nearest`.

    uint8 in 0..255 or float32 in [-1, 1], with any number of channels, each for itself: alpha does
    not weigh the colours. What a filter overshoots is clipped. Other integers are labels, of which
    `nearest` alone makes no new ones.
    The filters are Pillow's. Bilinear and bicubic are computed by torch, which differs by at most
    one grey level and is several times faster.
    """
    if image.shape[:2] == (height, width):
        return image
    if image.dtype != np.uint8 and image.dtype.kind in "iu":
        assert interpolation == "nearest"
        return _picked(image, height, width)
    if interpolation in ("bilinear", "bicubic"):
        batch = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        sized = F.interpolate(batch, (height, width), mode=interpolation, antialias=True)
        return np.ascontiguousarray(_clipped(sized[0].permute(1, 2, 0).numpy()))
    method = Image.Resampling[interpolation.upper()]
    if image.dtype != np.uint8 or image.shape[2] not in (1, 3):
        pages = (Image.fromarray(image[..., channel]) for channel in range(image.shape[2]))
        sized_pages = [np.asarray(page.resize((width, height), method)) for page in pages]
        return _clipped(np.stack(sized_pages, axis=2))
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    sized_picture = np.asarray(picture.resize((width, height), method))
    return sized_picture.reshape(height, width, image.shape[2])


def _picked(image: Pixels, height: int, width: int) -> Pixels:
    """The pixels whose middles are nearest, of any type."""
    rows, columns = (
        (2 * np.arange(wanted) + 1) * given // (2 * wanted)
        for given, wanted in zip(image.shape[:2], (height, width), strict=True)
    )
    picked: Pixels = image[rows[:, None], columns]
    return picked


def _clipped(image: Pixels) -> Pixels:
    """Floating-point pixels in [-1, 1]; uint8 ones as they are."""
    return image if image.dtype == np.uint8 else image.clip(-1, 1)


def side_lengths(size: int | Sequence[int], name: str = "size") -> tuple[int, int]:
    """Height and width in pixels from a side or [height, width]; ConfigError for anything else."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or min(sides) < 1:
        raise ConfigError(f"{name}: {size}; expected a number of pixels, or [height, width]")
    if max(sides) > _LONGEST:
        raise ConfigError(f"{name}: {size}; expected sides of at most {_LONGEST} pixels")
    return sides[0], sides[1]


@dataclass(frozen=True)
class Framing:
    """How a picture of any size becomes one of the size that is trained on.

    The largest window of the wanted proportions is cut out, in the centre or at random along the
    longer side, resized, and mirrored with probability `flip_p`. Smaller pictures are enlarged.

    min_crop, max_crop: the window's side as a fraction of the largest one's, drawn uniformly.
    """

    height: int
    width: int
    random_crop: bool = False
    flip_p: float = 0.0
    interpolation: Interpolation = "bicubic"
    min_crop: float = 1.0
    max_crop: float = 1.0

    @staticmethod
    def of(
        size: int | Sequence[int],
        *,
        random_crop: bool = False,
        flip_p: float = 0.0,
        interpolation: Interpolation = "bicubic",
        min_crop: float = 1.0,
        max_crop: float = 1.0,
    ) -> Framing:
        """A framing from a user's values; raises ConfigError for one out of range."""
        height, width = side_lengths(size)
        if not 0 <= flip_p <= 1:
            raise ConfigError(f"flip_p: {flip_p}; expected a probability, 0 to 1")
        known = get_args(Interpolation)
        if interpolation not in known:
            raise ConfigError(
                f"interpolation: {interpolation!r}; expected one of {', '.join(known)}"
                + did_you_mean(interpolation, known)
            )
        if not 0 < min_crop <= max_crop <= 1:
            raise ConfigError(
                f"crops of {min_crop} to {max_crop} of the image; expected 0 < least <= most <= 1"
            )
        return Framing(height, width, random_crop, flip_p, interpolation, min_crop, max_crop)

    def __call__(self, image: Pixels, rng: np.random.Generator, *, may_flip: bool = True) -> Pixels:
        """The picture (H, W, C) as (height, width, C); `may_flip` False where a text says left."""
        window = self.window(image.shape[0], image.shape[1], rng)
        return self.framed(image, window, flips=self.flips(rng) and may_flip)

    def window(self, rows: int, columns: int, rng: np.random.Generator | None = None) -> Window:
        """The window of a picture of so many pixels; without a generator the largest, central."""
        scale = min(rows / self.height, columns / self.width)
        if self.min_crop < 1 and rng is not None:
            scale *= rng.uniform(self.min_crop, self.max_crop)
        sides = (max(1, round(self.height * scale)), max(1, round(self.width * scale)))
        return _window(rows, columns, *sides, rng if self.random_crop else None)

    def flips(self, rng: np.random.Generator) -> bool:
        """Whether to mirror; drawn in any case, so that later draws do not depend on captions."""
        return bool(rng.random() < self.flip_p)

    def framed(self, image: Pixels, window: Window, *, flips: bool) -> Pixels:
        """A window of a picture (H, W, C) as (height, width, C), mirrored or not."""
        sized = resize(_cut(image, window), self.height, self.width, self.interpolation)
        return np.ascontiguousarray(sized[:, ::-1]) if flips else sized
