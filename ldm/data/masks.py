"""Holes in images: boxes and thick strokes, what a model that fills holes is trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ldm.config import ConfigError, did_you_mean
from ldm.data.wrapped import Wrapped, entry

__all__ = ["Holes", "Masked", "box", "hole", "masked", "stroke"]

Holes = NDArray[np.bool_]  # (H, W), true where a pixel is hidden
Kind = Literal["box", "stroke"]

_LARGEST = 0.5  # side of a box, or length of a stroke's segment, as a share of the picture's side
_THICKEST = 0.15  # half of a stroke's width, likewise
_MOST = 0.95  # share of a picture that is hidden: of more, few shapes hide anything new
_SMALLER = 0.9  # times as large is what is tried next where something would hide too much


def box(height: int, width: int, rng: np.random.Generator, scale: float = 1.0) -> Holes:
    """A rectangle anywhere; its sides are up to `scale` half of the picture's, at least a pixel."""
    most = [max(1, round(side * _LARGEST * scale)) for side in (height, width)]
    high, wide = (int(rng.integers(1, each, endpoint=True)) for each in most)
    top = int(rng.integers(0, height - high, endpoint=True))
    left = int(rng.integers(0, width - wide, endpoint=True))
    hidden = np.zeros((height, width), bool)
    hidden[top : top + high, left : left + wide] = True
    return hidden


def stroke(height: int, width: int, rng: np.random.Generator, scale: float = 1.0) -> Holes:
    """A thick line of 1 to 4 segments with round ends and joints, as a brush draws it.

    scale: 1 for segments up to half of the short side long and 0.3 of it wide.
    """
    short = min(height, width)
    radius = max(0.5, rng.uniform(0.3, 1.0) * _THICKEST * short * scale)
    points = [(rng.uniform(0, width), rng.uniform(0, height))]
    turn = rng.uniform(0, 2 * np.pi)
    for _ in range(int(rng.integers(1, 4, endpoint=True))):
        turn += rng.uniform(-np.pi / 2, np.pi / 2)
        length = rng.uniform(0.3, 1.0) * _LARGEST * short * scale
        x, y = points[-1]
        points.append(
            (
                float(np.clip(x + length * np.cos(turn), 0, width)),
                float(np.clip(y + length * np.sin(turn), 0, height)),
            )
        )
    page = Image.new("L", (width, height))
    pen = ImageDraw.Draw(page)
    pen.line(points, fill=1, width=max(1, round(2 * radius)))
    for x, y in points:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    return np.asarray(page) > 0


_SHAPES: dict[Kind, Callable[..., Holes]] = {"box": box, "stroke": stroke}


def hole(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    kinds: Sequence[Kind] = ("box", "stroke"),
    share: tuple[float, float] = (0.05, 0.5),
) -> Holes:
    """Boxes and strokes of one picture, each of a kind drawn from `kinds`.

    share: least and most of the picture that is hidden. How much is to be hidden is drawn uniformly
        from this range; shapes are added until it is, smaller ones where one would hide more than
        the most. At least a pixel is hidden, and never more than the most unless that is less.
        A hole of 512 x 512 pixels takes some milliseconds, or 0.3 s where both are 0.95, which is
        as much as `Masked` takes: the last free pixels have to be met by chance.
    """
    wanted, scale = rng.uniform(*share) * height * width, 1.0
    most = max(share[1] * height * width, 1)
    hidden = np.zeros((height, width), bool)
    while hidden.sum() < max(wanted, 1):
        more = hidden | _SHAPES[kinds[int(rng.integers(len(kinds)))]](height, width, rng, scale)
        if more.sum() <= most:
            hidden = more
        elif scale * max(height, width) < 1:  # what would be added is a pixel, and one too many
            break
        else:
            scale *= _SMALLER
    return hidden


def masked(images: NDArray[Any], hidden: Holes) -> NDArray[Any]:
    """Images (..., H, W, C), black where a pixel is hidden (..., H, W); their type is kept.

    Black is 0 of uint8 and -1 of floating point in [-1, 1].

    published: (1 - mask) * image in [0, 1], brought to [-1, 1] after that, which makes it -1.
    """
    black = images.dtype.type(0 if images.dtype == np.uint8 else -1)
    return np.where(hidden[..., None], black, images)


class Masked(Wrapped):
    """Another data set with a hole in each image: what a model that fills holes is trained on.

    source: the data set.
    kinds: of the shapes that hide something, `box` and `stroke`.
    share: [least, most] of an image that they hide, above 0 and up to 0.95.
    key: entry that holds the image.

    An item is that of the source, with `mask` (H, W, 1) uint8, 255 where a pixel is hidden and 0
    elsewhere, and `masked_image` (H, W, C), of the image's type and black where it is hidden. Holes
    are functions of seed, epoch and sample: training sees new ones in each epoch, validation the
    same.
    Raises ConfigError for a parameter out of range, and, when it is used, for a source that has one
    of these entries of its own.
    """

    def __init__(
        self,
        source: Any,
        *,
        kinds: Sequence[Kind] = ("box", "stroke"),
        share: Sequence[float] = (0.05, 0.5),
        key: str = "image",
    ) -> None:
        super().__init__(source)
        for kind in kinds:
            if kind not in get_args(Kind):
                known = get_args(Kind)
                expected = f"expected {' or '.join(known)}{did_you_mean(kind, known)}"
                raise ConfigError(f"kinds: {kind!r}; {expected}")
        if not kinds:
            raise ConfigError("kinds: none; expected box, stroke or both")
        if len(share) != 2 or not 0 < share[0] <= share[1] <= _MOST:
            raise ConfigError(
                f"share: {list(share)}; expected [least, most] of an image, above 0 and up to "
                f"{_MOST}"
            )
        self.kinds, self.share, self.key = tuple(kinds), (share[0], share[1]), key

    def changed(self, item: dict[str, Any], index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The item, with its hole."""
        for name in ("mask", "masked_image"):
            if name in item:
                raise ConfigError(f"source: {type(self.source).__name__} has a {name!r} of its own")
        image = entry(item, self.key, self.source)
        image = image if image.ndim == 3 else image[..., None]
        height, width = image.shape[:2]
        hidden = hole(height, width, rng, kinds=self.kinds, share=self.share)
        mask = hidden[..., None].astype(np.uint8) * 255
        return {**item, "mask": mask, "masked_image": masked(image, hidden)}
