"""Numbers of any range as pixels, and images that are stored as NumPy arrays."""

from __future__ import annotations

import math
import os
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ldm.data.opening import require_few_pixels, require_regular

__all__ = ["Dtype", "npy_shape", "read_npy", "scaled", "with_dtype"]

Dtype = Literal["uint8", "float32"]


def scaled(
    values: NDArray[Any], value_range: tuple[float, float] | None = None
) -> NDArray[np.floating[Any]]:
    """Numbers of any shape as fractions of their range: 0 where lowest, 1 where highest.

    value_range: lowest and highest number; by default 0 and 1 for floating point, and all that the
    type can hold for integers of 8 or 16 bits.
    Float64 stays float64, everything else becomes float32.
    Raises ValueError for another type, and for a number outside the range, NaN among them: with the
    number and its index.
    """
    kind, width = values.dtype.kind, values.dtype.itemsize
    if not (kind == "f" or (kind in "iu" and width <= 2)):
        raise ValueError(f"holds {values.dtype}, expected floats or integers of 8 or 16 bits")
    if value_range is None and kind in "iu":
        limits = np.iinfo(values.dtype)
        value_range = (limits.min, limits.max)
    low, high = value_range or (0.0, 1.0)
    is_outside = ~((values >= low) & (values <= high))
    if is_outside.any():
        index = tuple(int(i) for i in np.unravel_index(is_outside.argmax(), values.shape))
        place = ", ".join(map(str, index))
        raise ValueError(f"{values[index]!s} at [{place}] is outside {low:g}..{high:g}")
    # a copy, changed in place: stacks of channels are large
    wide: NDArray[Any] = values.astype(np.float64 if kind == "f" and width > 4 else np.float32)
    wide -= low
    wide /= high - low
    return wide


def with_dtype(fractions: NDArray[np.floating[Any]], dtype: Dtype) -> NDArray[Any]:
    """Numbers in 0..1 as pixels: uint8 in 0..255, rounded, or float32 in [-1, 1]."""
    if dtype == "uint8":
        levels: NDArray[np.uint8] = np.rint(fractions * 255).astype(np.uint8)
        return levels
    # rounding may end just above 1
    signed: NDArray[np.floating[Any]] = 2 * fractions - 1
    return signed.clip(-1, 1).astype(np.float32)


def npy_shape(path: Path, channels: int) -> tuple[int, int]:
    """Height and width of an array (H, W, channels) in a `.npy` file, from its header.

    (H, W) counts as one channel.
    Raises ValueError for another number of channels, other dimensions, and for a file that is no
    such array or shorter than its header says.
    """
    require_regular(path)
    with path.open("rb") as file:
        shape = _header(file)
    _require_channels(shape, channels)
    return shape[0], shape[1]


def read_npy(
    path: Path,
    channels: int,
    *,
    dtype: Dtype = "uint8",
    value_range: tuple[float, float] | None = None,
) -> NDArray[Any]:
    """The image in a `.npy` file, (H, W, channels) uint8 or float32 in [-1, 1].

    The file holds (H, W, channels), or (H, W) for one channel; see `scaled` for the numbers.
    Raises ValueError as `npy_shape` and `scaled` do. Nothing in the file is run.
    """
    require_regular(path)
    with path.open("rb") as file:
        _require_channels(_header(file), channels)
        file.seek(0)
        values = npy.read_array(file, allow_pickle=False)
    pixels = with_dtype(scaled(values, value_range), dtype)
    return np.ascontiguousarray(pixels.reshape(*values.shape[:2], channels))


def _header(file: BinaryIO) -> tuple[int, ...]:
    """Shape of the array in a `.npy` file, whose numbers must be there."""
    if not os.fstat(file.fileno()).st_size:
        raise ValueError("is empty")
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"is of version {version} of the format .npy, expected 1, 2 or 3")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    try:
        shape, _, dtype = read(file)
    except TokenError as error:  # NumPy takes the header apart as Python's own words
        raise ValueError("has a damaged header") from error
    if dtype.hasobject:
        raise ValueError("holds Python objects, expected numbers")
    needed = math.prod(shape) * dtype.itemsize
    found = os.fstat(file.fileno()).st_size - file.tell()
    if found < needed:
        raise ValueError(f"is shorter than its header says: {found} bytes of {needed}")
    return shape


def _require_channels(shape: tuple[int, ...], channels: int) -> None:
    """Raise ValueError unless it is the shape of an image, which is not too large."""
    if len(shape) not in (2, 3):
        raise ValueError(f"is of shape {shape}, expected (H, W) or (H, W, C)")
    count = shape[2] if len(shape) == 3 else 1
    if count != channels:
        plural = "" if count == 1 else "s"
        is_first = len(shape) == 3 and shape[0] == channels
        hint = f": its shape {shape} looks like (C, H, W), expected (H, W, C)" if is_first else ""
        raise ValueError(f"has {count} channel{plural}, expected {channels}{hint}")
    require_few_pixels(*shape[:2])
