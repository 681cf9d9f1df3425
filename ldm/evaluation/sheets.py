"""Images beside each other on one sheet, with their captions, and maps of where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ldm.data.arrays import with_dtype

__all__ = ["captioned_sheet", "heat_map", "shown"]

Pixels = NDArray[np.uint8]
AnyPixels = NDArray[Any]  # (H, W, C), uint8, or float32 in [-1, 1]

_MARGIN = 4  # pixels around a cell
_LINE = 14  # height of a line of text
_LEAST = 150  # width of a cell at least, so that its caption can be read
_MOST = 512  # sides of a cell at most; larger images are shown smaller
_PAPER, _INK = (255, 255, 255), (0, 0, 0)


def shown(image: AnyPixels) -> Pixels:
    """An image of any number of channels to look at, (H, W, 3) or (H, W, 1) uint8.

    The first three channels of more than three, and the first of two.
    """
    visible = image[..., : 1 if image.shape[2] < 3 else 3]
    if visible.dtype == np.uint8:
        return visible
    levels: Pixels = with_dtype((visible + 1) / 2, "uint8")
    return levels


def heat_map(
    image: AnyPixels, reconstruction: AnyPixels, most: float | None = None
) -> tuple[Pixels, float]:
    """Where two images of one type differ, as (H, W, 3) uint8, and the end of its scale.

    The error of a pixel is the largest of its channels', in grey levels of 255. Black is 0, then
    red, yellow, and white at `most` grey levels, by default the largest error (at least 1).
    """
    scale = 1 if image.dtype == np.uint8 else 255 / 2
    error = scale * np.abs(image.astype(np.float32) - reconstruction).max(axis=2)
    most = max(float(error.max()), 1) if most is None else most
    level = 3 * np.minimum(error / most, 1)[..., None] - np.arange(3)
    return np.round(255 * level.clip(0, 1)).astype(np.uint8), most


def captioned_sheet(rows: Sequence[Sequence[tuple[AnyPixels, str]]]) -> Pixels:
    """Rows of images as `shown`, each with lines of text below it: (H, W, 3) uint8.

    Small images are enlarged by a whole factor, pixel by pixel, and those of more than 512 pixels
    shrunk to that.
    """
    shown = [[(_fitted(image), caption) for image, caption in row] for row in rows]
    columns = max(len(row) for row in shown)
    widths = [
        max(max(row[i][0].width, _text_width(row[i][1])) for row in shown if i < len(row))
        for i in range(columns)
    ]
    heights = [
        max(image.height + _LINE * len(caption.splitlines()) for image, caption in row)
        for row in shown
    ]
    size = (sum(widths) + _MARGIN * (columns + 1), sum(heights) + _MARGIN * (len(shown) + 1))
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    top = _MARGIN
    for row, height in zip(shown, heights, strict=True):
        left = _MARGIN
        for (image, caption), width in zip(row, widths, strict=False):
            sheet.paste(image, (left, top))
            pen.multiline_text((left, top + image.height), caption, fill=_INK, font=_font())
            left += width + _MARGIN
        top += height + _MARGIN
    return np.asarray(sheet)


def _fitted(image: AnyPixels) -> Image.Image:
    visible = shown(image)
    grey_or_rgb = visible[..., 0] if visible.shape[2] == 1 else visible
    picture = Image.fromarray(np.ascontiguousarray(grey_or_rgb)).convert("RGB")
    factor = min(-(-_LEAST // picture.width), max(_MOST // picture.height, 1))
    if factor > 1:
        size = (factor * picture.width, factor * picture.height)
        return picture.resize(size, Image.Resampling.NEAREST)
    picture.thumbnail((_MOST, _MOST))
    return picture


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=_LINE - 4)


def _text_width(text: str) -> int:
    return int(max((_font().getlength(line) for line in text.splitlines()), default=0)) + 1
