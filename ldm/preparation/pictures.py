"""Images made smaller once, so that every epoch reads less."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from ldm.config import ConfigError
from ldm.data.decoding import UNREADABLE, reason
from ldm.data.opening import opened
from ldm.data.transforms import Framing

__all__ = ["smaller"]


def smaller(content: bytes, size: int) -> bytes:
    """The bytes of an image file as those of a PNG of `size` x `size` pixels.

    The central square, resized with Lanczos' filter, antialiased; RGB, upright.
    Raises ConfigError for what is no image and for one that would have to be enlarged.
    """
    try:
        with opened(io.BytesIO(content)) as image:
            ImageOps.exif_transpose(image, in_place=True)
            pixels = np.asarray(image.convert("RGB"))
    except UNREADABLE as error:
        raise ConfigError(f"cannot be read: {reason(error)}") from error
    height, width = pixels.shape[:2]
    if min(height, width) < size:
        raise ConfigError(f"has {width} x {height} pixels; expected {size} or more (--size)")
    # a window in the centre and no flip: nothing is drawn
    framing = Framing.of(size, interpolation="lanczos")
    file = io.BytesIO()
    Image.fromarray(framing(pixels, np.random.default_rng(0))).save(file, "PNG")
    return file.getvalue()
