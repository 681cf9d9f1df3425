"""Arrays of a safetensors file that stay on the disk: written piece by piece, read where asked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm.config import ConfigError

__all__ = ["mapped_arrays", "write_arrays"]

_TYPES = {"F16": np.float16, "F32": np.float32, "I32": np.int32, "I64": np.int64, "U8": np.uint8}
_LENGTH_BYTES = 8  # of the header's length, little endian, at the beginning of the file
_LONGEST = 100_000_000  # bytes of a header, the format's own limit
_CHUNK = 1 << 26  # bytes written at a time


def mapped_arrays(path: str | Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The arrays of a safetensors file by their names, memory-mapped, and its metadata.

    Raises ConfigError for a file that is missing, damaged, or of other types.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if not 2 <= length <= _LONGEST:
                raise ValueError("it does not begin with a header")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        start = _LENGTH_BYTES + length
        arrays = {name: _mapped(path, start, entry) for name, entry in header.items()}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: is no safetensors file, or is damaged: {error}") from error
    return arrays, metadata


def _mapped(path: Path, start: int, entry: Mapping[str, Any]) -> NDArray[Any]:
    """One array of a file whose data begin at byte `start`."""
    kind, shape = np.dtype(_TYPES[entry["dtype"]]), tuple(entry["shape"])
    first, last = entry["data_offsets"]
    if first < 0 or min(shape, default=0) < 0 or type(first + last + sum(shape)) is not int:
        raise ValueError(f"shape {shape} and bytes {first} to {last} are none")
    if last - first != math.prod(shape) * kind.itemsize:
        raise ValueError(f"shape {shape} does not fill bytes {first} to {last}")
    if start + last > path.stat().st_size:
        raise ValueError("it ends early")
    if first == last:  # there is nothing that could be mapped
        return np.empty(shape, kind)
    return np.memmap(path, kind, "r", start + first, shape)


def write_arrays(
    path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file, whole or not at all, in the memory of a piece of it.

    arrays: may be memory-mapped; float16, float32, int32, int64 or uint8.
    """
    names = {np.dtype(kind): name for name, kind in _TYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    place = 0
    for name, array in arrays.items():
        offsets = [place, place + array.nbytes]
        header[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": offsets,
        }
        place = offsets[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8, as the format asks
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little"))
        file.write(text)
        for array in arrays.values():
            rows = max(1, _CHUNK // max(1, array[:1].nbytes))
            for start in range(0, len(array), rows):
                file.write(np.ascontiguousarray(array[start : start + rows]).tobytes())
    part.replace(path)
