"""Opening files of a data set: nothing but image formats, and nothing too large to be decoded."""

from __future__ import annotations

import math
import os
import stat
from functools import lru_cache
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

__all__ = ["opened", "require_few_pixels", "require_regular"]

# Pillow knows others, one of which hands its files to another program (EPS)
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")


def opened(source: Path | IO[bytes]) -> Image.Image:
    """An image file, its header read, of whose pixels nothing is decoded yet.

    Raises one of `ldm.data.decoding.UNREADABLE`: for what is no regular file, is empty, is of
    another format, or has more pixels than `Image.MAX_IMAGE_PIXELS`.
    """
    if isinstance(source, Path):
        require_regular(source)
    try:
        image = Image.open(source, formats=_formats())
    except UnidentifiedImageError:
        if _size(source) == 0:
            raise ValueError("is empty") from None
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # raised at twice the limit, or where warnings are errors; in the same words as below
        limit = Image.MAX_IMAGE_PIXELS or 0
        text = str(error).replace(f"limit of {2 * limit} ", f"limit of {limit} ")
        raise Image.DecompressionBombError(text) from None
    try:
        require_few_pixels(*image.size)
    except Image.DecompressionBombError:
        image.close()
        raise
    return image


def require_regular(path: Path) -> None:
    """Raise ValueError for a pipe, a socket or a device, on which a read may wait for ever."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a directory has an error of its own
        raise ValueError("is no regular file")


def require_few_pixels(*sides: int) -> None:
    """Raise DecompressionBombError for more pixels than `Image.MAX_IMAGE_PIXELS`."""
    limit, pixels = Image.MAX_IMAGE_PIXELS, math.prod(sides)
    if limit is not None and pixels > limit:
        raise Image.DecompressionBombError(
            f"Image size ({pixels} pixels) exceeds limit of {limit} pixels, could be decompression "
            "bomb DOS attack."
        )


def _size(source: Path | IO[bytes]) -> int:
    return source.stat().st_size if isinstance(source, Path) else source.seek(0, os.SEEK_END)


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Those that this Pillow has."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
