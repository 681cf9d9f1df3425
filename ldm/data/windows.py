"""Windows of pictures: what is trained on parts of larger ones, at their own resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ldm.config import ConfigError
from ldm.data.transforms import side_lengths
from ldm.data.wrapped import Wrapped, entry

__all__ = ["Windows"]

_OF_PIXELS = ("image", "segmentation", "mask", "masked_image")
_MADE_BEFORE = {"layout": "Layouts", "LR_image": "SuperResolution"}  # of the whole picture


class Windows(Wrapped):
    """A window of each picture of another data set, at random, with its map and boxes.

    Models of maps are trained so and draw whole pictures afterwards: of 256 pixels out of 384 in
    the paper (section 4.3.2).

    source: the data set.
    size: side of the window in pixels, or [height, width].

    An item is that of the source with `image` (h, w, C), and, where it has them, `segmentation`
    (h, w), `mask` and `masked_image` of the same window and `boxes` (N, 4) as fractions of it: cut
    off at its border, those with nothing inside left out with their `box_classes`. Nothing is
    resized.
    Raises ConfigError, when it is used, for a picture smaller than the window, and for a source
    with `layout` or `LR_image`, which would stay those of the whole picture.
    """

    def __init__(self, source: Any, size: int | Sequence[int]) -> None:
        super().__init__(source)
        self.height, self.width = side_lengths(size)

    def changed(self, item: dict[str, Any], index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The window of an item."""
        for key in _MADE_BEFORE.keys() & item.keys():
            raise ConfigError(
                f"source: {type(self.source).__name__} has a {key!r} of the whole picture; "
                f"expected {_MADE_BEFORE[key]} around Windows"
            )
        height, width = entry(item, "image", self.source).shape[:2]
        if height < self.height or width < self.width:
            raise ConfigError(
                f"size: {self.height} x {self.width} pixels; item {index} of the source has "
                f"{height} x {width}, expected as many at least"
            )
        top = int(rng.integers(0, height - self.height, endpoint=True))
        left = int(rng.integers(0, width - self.width, endpoint=True))
        window = np.s_[top : top + self.height, left : left + self.width]
        cut = {key: np.ascontiguousarray(item[key][window]) for key in _OF_PIXELS if key in item}
        if "boxes" in item:
            frame = np.array([left, top, self.width, self.height], dtype=np.float64)
            cut |= _seen(item, np.array([width, height]), frame)
        return {**item, **cut}


def _seen(item: dict[str, Any], sides: Any, frame: Any) -> dict[str, Any]:
    """Boxes and their classes in a window (left, top, width, height) in pixels."""
    boxes = np.asarray(item["boxes"], dtype=np.float64).reshape(-1, 4)
    first = ((boxes[:, :2] * sides - frame[:2]) / frame[2:]).clip(0, 1)
    last = (((boxes[:, :2] + boxes[:, 2:]) * sides - frame[:2]) / frame[2:]).clip(0, 1)
    kept = (last > first).all(axis=1)
    found = {"boxes": np.concatenate([first, last - first], axis=1)[kept].astype(np.float32)}
    if "box_classes" in item:
        found["box_classes"] = np.asarray(item["box_classes"])[kept]
    return found
