"""Layouts: which things are where in a picture, and pictures of that.

A layout is an array (N, 5), an object to a row: class label, then left, top, width and height of
its box as fractions of the picture's sides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from ldm.config import ConfigError
from ldm.data.maps import colour_of
from ldm.data.wrapped import Wrapped, entry

__all__ = ["TOLERANCE", "Layouts", "layout_picture", "require_layout"]

TOLERANCE = 1e-3  # of the picture's side, by which a box may leave it: boxes of files are rounded


def require_layout(layout: ArrayLike, num_classes: int | None = None) -> None:
    """Raise ValueError for an object of no finite numbers, without area, outside or of no class.

    num_classes: labels are expected below it; None takes any.
    The message names the object by its place, counted from 0, and its value.
    """
    objects = np.asarray(layout, dtype=np.float64).reshape(-1, 5)
    for index, (label, left, top, width, height) in enumerate(objects.tolist()):
        box = f"object {index}: box {_spaced(left, top, width, height)}"
        if not (label >= 0 and label.is_integer()) or label >= (num_classes or np.inf):
            last = "" if num_classes is None else f" to {num_classes - 1}"
            raise ValueError(f"object {index}: label {label:g}; expected a whole number 0{last}")
        if not np.isfinite([left, top, width, height]).all():
            raise ValueError(f"{box}; expected finite numbers")
        if not (width > 0 and height > 0):
            raise ValueError(f"{box}; expected a width and a height of more than 0")
        reach = max(-left, -top, left + width - 1, top + height - 1)
        if not reach <= TOLERANCE:
            raise ValueError(
                f"{box}; expected left, top, width and height as fractions of the picture, inside "
                "of it"
            )


def _spaced(*values: float) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"


class Layouts(Wrapped):
    """A data set of boxes with `layout` added, what a layout-to-image model reads.

    source: the data set, whose items hold `boxes` (N, 4), left, top, width and height as fractions,
        and `box_classes` (N,).

    An item holds what it held, and `layout` (N, 5) float32: label, left, top, width, height.

    Raises ConfigError, when it is used, for an item without these entries, of other shapes, or with
    a box that is none.
    """

    def changed(self, item: dict[str, Any], index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The item with its layout."""
        labels, boxes = (
            np.asarray(entry(item, key, self.source), dtype=np.float32)
            for key in ("box_classes", "boxes")
        )
        boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes  # of an empty list, too
        if labels.ndim != 1 or boxes.shape != (len(labels), 4):
            raise ConfigError(
                f"source: item {index}: boxes of shape {boxes.shape} and box_classes of shape "
                f"{labels.shape}; expected (N, 4) and (N,)"
            )
        layout = np.concatenate([labels[:, None], boxes], axis=1)
        try:
            require_layout(layout, len(self.class_names) or None)
        except ValueError as error:
            raise ConfigError(f"source: item {index}: {error}") from error
        return {**item, "layout": layout}


def layout_picture(layout: ArrayLike, height: int, width: int) -> NDArray[np.uint8]:
    """A layout as a picture (height, width, 3): frames with their labels, a colour to a class."""
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    objects = np.asarray(layout, dtype=np.float64).reshape(-1, 5)
    # the largest first, so that small ones are not covered
    for label, left, top, box_width, box_height in sorted(
        objects.tolist(), key=lambda row: -row[3] * row[4]
    ):
        corners = (left, top, left + box_width, top + box_height)
        sides = (width - 1, height - 1) * 2
        place = [
            round(float(np.clip(at, 0, 1)) * side) for at, side in zip(corners, sides, strict=True)
        ]
        colour = colour_of(int(label))
        pale = tuple((3 * 255 + level) // 4 for level in colour)
        draw.rectangle(place, fill=pale, outline=colour)
        draw.text((place[0] + 2, place[1] + 1), str(int(label)), fill=colour)
    return np.asarray(page)
