"""More than 8 bits per channel, from image files of which Pillow gives 8.

Pillow has no mode for colour of 16 bits: it keeps the upper byte of each number. Its decoders can
as well be asked for the lower one, so a PNG or TIFF is decoded twice and put together again. Other
formats of more than 8 bits are refused.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ldm.data.opening import opened

__all__ = ["is_deep", "laid_out", "read_sixteen_bits", "require_all_bits"]

_BITS_PER_SAMPLE, _PLANAR = 258, 284  # tags of TIFF
_SEPARATE_PLANES = 2

# rawmode endings: which byte of a number is the upper one
_NATIVE = "16L" if sys.byteorder == "little" else "16B"
_SWAPPED = {"16B": "16L", "16L": "16B", "16N": "16B" if _NATIVE == "16L" else "16L"}


def is_deep(image: Image.Image) -> bool:
    """Whether an opened, not yet loaded image has colour or transparency of 16 bits.

    Raises ValueError where these lie in a way that Pillow garbles.
    """
    if image.mode.startswith(("I", "F")):
        return False
    is_sixteen = _stored_bits(image) > 8 and _rawmode(image)[-3:] in _SWAPPED
    if image.format == "TIFF" and _stored_bits(image) > 8:
        is_planar = image.tag_v2.get(_PLANAR) == _SEPARATE_PLANES  # type: ignore[attr-defined]
        if is_planar:
            raise ValueError(
                f"has {_stored_bits(image)} bits per channel in separate planes, which cannot be "
                "decoded; expected interleaved channels, or .npy"
            )
    return is_sixteen


def require_all_bits(path: Path, image: Image.Image) -> None:
    """Raise ValueError when Pillow drops bits of an opened image that `is_deep` does not find."""
    if image.mode.startswith(("I", "F")):
        return
    bits = max(_stored_bits(image), _bits_in_header(path, image.format))
    if bits > 8:
        raise ValueError(
            f"is {image.format} with {bits} bits per channel in colour, of which 8 can be read; "
            "expected PNG, TIFF of 3 or 4 channels, or .npy for dtype float32"
        )


def read_sixteen_bits(path: Path) -> NDArray[np.uint16]:
    """An image file that `is_deep`, upright, (H, W, C): C is 2 or 4 with alpha, otherwise 3.

    A colour that a PNG declares transparent becomes alpha.
    """
    with opened(path) as image:
        if _rawmode(image) == "LA;16B":
            # its four bytes to a pixel are those of RGBA
            halves = _bytes(image, "RGBA")
            return _joined(halves[..., ::2], halves[..., 1::2])
        if image.mode not in ("RGB", "RGBA"):
            raise ValueError(
                f"is {image.mode} with 16 bits per channel, expected grey, RGB or RGBA"
            )
        rawmode, key = _rawmode(image), image.info.get("transparency")
        upper = _bytes(image, rawmode)
    with opened(path) as image:
        lower = _bytes(image, rawmode[:-3] + _SWAPPED[rawmode[-3:]])
    numbers = _joined(upper, lower)
    if key is None or numbers.shape[2] != 3:
        return numbers
    is_opaque = (numbers != np.asarray(key, np.uint16)).any(axis=2, keepdims=True)
    return np.concatenate([numbers, is_opaque.astype(np.uint16) * 65535], axis=2)


def _joined(upper: NDArray[np.uint8], lower: NDArray[np.uint8]) -> NDArray[np.uint16]:
    return upper * np.uint16(256) + lower


def laid_out(fractions: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """Grey, grey and alpha, RGB or RGBA in 0..1 as 1, 3 or 4 channels, all (H, W, C).

    With four channels, alpha is kept, 1 where there was none; with fewer, the picture is laid on
    white. Grey of colour is 0.299 R + 0.587 G + 0.114 B.
    """
    bands = fractions.shape[2]
    colour = fractions[..., : bands - 1] if bands in (2, 4) else fractions
    alpha = fractions[..., -1:] if bands in (2, 4) else np.ones_like(fractions[..., :1])
    if channels == 1 and colour.shape[2] == 3:
        colour = colour @ np.array([[0.299], [0.587], [0.114]], np.float32)
    elif channels > 1:
        colour = np.broadcast_to(colour, (*colour.shape[:2], 3))
    if channels == 4:
        return np.concatenate([colour, alpha], axis=2)
    return colour * alpha + (1 - alpha)


def _bytes(image: Image.Image, rawmode: str) -> NDArray[np.uint8]:
    """What the image decodes to when its tiles are read in another raw mode, upright."""
    tiles = []
    for tile in image.tile:  # type: ignore[attr-defined]
        old = tile.args
        new = rawmode if isinstance(old, str) else (rawmode, *old[1:])
        tiles.append(tile._replace(args=new))
    image.tile = tiles  # type: ignore[attr-defined]
    ImageOps.exif_transpose(image, in_place=True)
    return np.asarray(image)


def _rawmode(image: Image.Image) -> str:
    """How the first tile's numbers lie in the file, in Pillow's words; empty when unknown."""
    args = image.tile[0].args if image.tile else ""  # type: ignore[attr-defined]
    first = args if isinstance(args, str) else (args or ("",))[0]
    return first if isinstance(first, str) else ""


def _stored_bits(image: Image.Image) -> int:
    """Bits per channel as far as Pillow knows them: PNG, TIFF and PPM; otherwise 8."""
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))))  # type: ignore[attr-defined]
    if image.format == "PNG":
        return 16 if _rawmode(image)[-3:] in _SWAPPED else 8
    if image.format == "PPM" and image.tile:  # type: ignore[attr-defined]
        args = image.tile[0].args  # type: ignore[attr-defined]
        return int(args[1]).bit_length() if isinstance(args, tuple) else 8
    return 8


def _bits_in_header(path: Path, kind: str | None) -> int:
    """Bits per channel of JPEG 2000 and AVIF, from the file's first 64 kB; 8 for other formats."""
    if kind not in ("JPEG2000", "AVIF"):
        return 8
    with path.open("rb") as file:
        head = file.read(2**16)
    if kind == "AVIF":
        # the third byte of the box: profile, then a bit for 10 or more and one for 12
        start = head.find(b"av1C") + 6
        return 8 + 2 * (head[start] >> 6 & 1) + 2 * (head[start] >> 5 & 1)
    # behind the two markers: length, capabilities, eight sizes, the number of components
    start = head.find(b"\xff\x4f\xff\x51") + 4 + 2 + 2 + 8 * 4 + 2
    return (head[start] & 0x7F) + 1
