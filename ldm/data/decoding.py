"""Image files of every kind as arrays, upright.

Colour profiles are ignored: values are taken as they are stored.
"""

from __future__ import annotations

import io
import struct
import tokenize
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ldm.data.arrays import Dtype, scaled, with_dtype
from ldm.data.deep import is_deep, laid_out, read_sixteen_bits, require_all_bits
from ldm.data.opening import opened

__all__ = [
    "EXTENSIONS",
    "MODES",
    "UNREADABLE",
    "decoded_image",
    "header_size",
    "read_image",
    "reason",
    "stored_range",
    "upright_size",
]

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by the number of channels

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
    RuntimeError,  # of AVIF
    struct.error,
    tokenize.TokenError,  # of the header of a .npy
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


def header_size(path: Path, channels: int = 3, dtype: Dtype = "uint8") -> tuple[int, int]:
    """Width and height as the file's header gives them; raises as `read_image` does.

    Of the picture as it is stored: one that lies on its side has them exchanged (`upright_size`).
    """
    with _opened(path, channels) as image:
        if not is_deep(image) and dtype == "float32":
            require_all_bits(path, image)
        return image.size


def upright_size(path: Path) -> tuple[int, int]:
    """Height and width of what `read_image` gives; raises as that does.

    The file is decoded, as some formats tell behind the pixels how these are turned.
    """
    with _opened(path, channels=3) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return image.height, image.width


def read_image(
    path: Path,
    channels: int = 3,
    *,
    dtype: Dtype = "uint8",
    value_range: tuple[float, float] | None = None,
    draft_side: int | None = None,
) -> NDArray[Any]:
    """An image file as (H, W, channels); raises one of `UNREADABLE`.

    channels: 1 for grey, 3 for RGB, 4 for RGBA, whatever the file has.
    dtype: `uint8` in 0..255; `float32` in [-1, 1], with all bits of the file: where these cannot
    be read, the file is refused.
    value_range: lowest and highest number of floating-point files, 0 and 1 by default.
    draft_side: decode a JPEG at a half, quarter or eighth of its size as long as both sides stay at
    least this long. Much faster for large photographs, at slightly different pixels.

    Turned upright by its EXIF orientation; transparent images are laid on white, unless alpha is
    asked for; palettes, CMYK and grey become RGB; of several frames the first is taken. As uint8,
    16 bits of grey are scaled, not clipped; of 16 bits of colour the upper 8 are kept.
    """
    with _opened(path, channels) as image:
        deep = is_deep(image)
        if dtype == "float32" and not deep:
            require_all_bits(path, image)
        if draft_side is not None:
            image.draft("L" if channels == 1 else "RGB", (draft_side, draft_side))
        if dtype == "uint8":
            ImageOps.exif_transpose(image, in_place=True)
            return _eight_bits(image, channels, value_range)
        if not deep:
            ImageOps.exif_transpose(image, in_place=True)
            return _all_bits(image, channels, value_range)
    return with_dtype(laid_out(scaled(read_sixteen_bits(path)), channels), "float32")


def decoded_image(content: bytes, *, draft_side: int | None = None) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) uint8 of an image file's content; see `read_image`."""
    with opened(io.BytesIO(content)) as image:
        if draft_side is not None:
            image.draft("RGB", (draft_side, draft_side))
        ImageOps.exif_transpose(image, in_place=True)
        return _eight_bits(image, 3, None)


def stored_range(path: Path) -> tuple[float, float] | None:
    """Lowest and highest number that an image file can hold; None for one of floating point."""
    with opened(path) as image:
        if image.mode == "F":
            return None
        return (0, 65535) if image.mode.startswith("I") or is_deep(image) else (0, 255)


def _opened(path: Path, channels: int) -> Image.Image:
    """An image file, its header read; ValueError says why where Pillow's reason says less."""
    try:
        image = opened(path)
    except UnidentifiedImageError:
        with path.open("rb") as file:
            is_tiff = file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
        if is_tiff:
            raise ValueError(
                "a TIFF that cannot be decoded: damaged, or of other numbers or channels than "
                "grey, RGB and RGBA of 8 or 16 bits; store such images as .npy"
            ) from None
        raise
    if channels not in MODES:
        image.close()
        raise ValueError(f"has {len(image.getbands())} channels, expected {channels}, as .npy")
    return image


def _eight_bits(
    image: Image.Image, channels: int, value_range: tuple[float, float] | None
) -> NDArray[np.uint8]:
    """The pixels of an upright image, (H, W, channels)."""
    if image.mode.startswith("I"):  # "I", too, holds 16 bits: it is what 16-bit PGM decodes to
        levels = np.asarray(image).astype(np.float32) / 257
        image = Image.fromarray(levels.clip(0, 255).round().astype(np.uint8))
    elif image.mode == "F":
        image = Image.fromarray(with_dtype(scaled(np.asarray(image), value_range), "uint8"))
    pixels = np.asarray(_converted(image, channels))
    return pixels.reshape(*pixels.shape[:2], channels)


def _all_bits(
    image: Image.Image, channels: int, value_range: tuple[float, float] | None
) -> NDArray[np.float32]:
    """The same in float32 in [-1, 1], from grey of any depth and from colour of 8 bits."""
    if image.mode == "F":
        grey = scaled(np.asarray(image), value_range)
    elif image.mode.startswith("I"):
        grey = scaled(np.asarray(image).astype(np.float64), (0, 65535))
    else:
        return with_dtype(scaled(_eight_bits(image, channels, None)), "float32")
    return with_dtype(laid_out(grey.astype(np.float32)[..., None], channels), "float32")


def _converted(image: Image.Image, channels: int) -> Image.Image:
    """The image in the mode of so many channels; on white where there is no alpha to keep."""
    mode = MODES[channels]
    if image.has_transparency_data and channels != 4:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert(mode)
    if image.mode == mode:
        return image
    if channels == 4 and not image.has_transparency_data:
        image = image.convert("RGB")  # from which every mode leads on
    return image.convert(mode)
