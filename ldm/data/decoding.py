"""Image files of every kind as arrays: 8 bits per channel, upright, opaque.

Colour profiles are ignored: values are taken as they are stored.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["EXTENSIONS", "UNREADABLE", "Channels", "header_size", "read_image", "reason"]

Channels = Literal[1, 3]

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
    | {".pbm", ".jp2", ".avif", ".tga"}
)

# what Pillow's decoders raise for damaged or foreign files, and for more pixels than it accepts
# (Image.MAX_IMAGE_PIXELS, against decompression bombs)
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    TypeError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def reason(error: Exception) -> str:
    """Why a file could not be read, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def header_size(path: Path) -> tuple[int, int]:
    """Width and height as the file's header gives them; raises one of `UNREADABLE`."""
    with Image.open(path) as image:
        return image.size


def read_image(
    path: Path, channels: Channels = 3, *, draft_side: int | None = None
) -> NDArray[np.uint8]:
    """An image file as (H, W, channels) uint8; raises one of `UNREADABLE`.

    Turned upright by its EXIF orientation; transparent images are laid on white; palettes, CMYK
    and grey become RGB; 16 bits per channel are scaled, not clipped, to 8; floating point is
    expected in 0..1; of several frames the first is taken.

    draft_side: decode a JPEG at a half, quarter or eighth of its size as long as both sides stay at
    least this long. Much faster for large photographs, at slightly different pixels.
    """
    with Image.open(path) as image:
        if draft_side is not None:
            image.draft("RGB" if channels == 3 else "L", (draft_side, draft_side))
        ImageOps.exif_transpose(image, in_place=True)
        pixels = np.asarray(_opaque(_eight_bit(image), "RGB" if channels == 3 else "L"))
    return pixels.reshape(*pixels.shape[:2], channels)


def _eight_bit(image: Image.Image) -> Image.Image:
    """An image of 16-bit, 32-bit or floating-point pixels as grey of 8 bits; others unchanged."""
    if image.mode.startswith("I"):  # "I", too, holds 16 bits: it is what 16-bit PGM decodes to
        levels = np.asarray(image).astype(np.float32) / 257
    elif image.mode == "F":
        levels = np.asarray(image) * 255
        if not np.all((levels >= 0) & (levels <= 255)):
            raise ValueError("floating-point pixels outside 0..1")
    else:
        return image
    return Image.fromarray(levels.clip(0, 255).round().astype(np.uint8))


def _opaque(image: Image.Image, mode: str) -> Image.Image:
    if not image.has_transparency_data:
        return image if image.mode == mode else image.convert(mode)
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert(mode)
