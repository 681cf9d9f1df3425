"""Which numbers of a file become pixels, and of which type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ldm.config import ConfigError, did_you_mean
from ldm.data.arrays import Dtype, npy_shape, read_npy
from ldm.data.decoding import EXTENSIONS, MODES, header_size, read_image, stored_range

__all__ = ["NPY", "PixelFormat"]

NPY = ".npy"


@dataclass(frozen=True)
class PixelFormat:
    """What is read of a file.

    channels: of the pixels. Image files give 1 (grey), 3 (RGB) or 4 (RGBA), converted where they
        have others; `.npy` files must have exactly these.
    dtype: `uint8` in 0..255, or `float32` in [-1, 1] with all bits of the file.
    value_range: lowest and highest number of `.npy` and of floating-point files; by default 0..1
        for floating point, and all that the type can hold for integers.
    """

    channels: int = 3
    dtype: Dtype = "uint8"
    value_range: tuple[float, float] | None = None

    @staticmethod
    def of(channels: int, dtype: Dtype, value_range: Sequence[float] | None) -> PixelFormat:
        """A format from a user's values; raises ConfigError for one out of range."""
        if channels < 1:
            raise ConfigError(f"channels: {channels}; expected 1 or more")
        if dtype not in get_args(Dtype):
            known = get_args(Dtype)
            raise ConfigError(
                f"dtype: {dtype!r}; expected 'uint8' or 'float32'{did_you_mean(dtype, known)}"
            )
        if value_range is None:
            return PixelFormat(channels, dtype)
        if (
            len(value_range) != 2
            or not np.isfinite(value_range).all()
            or not value_range[0] < value_range[1]
        ):
            raise ConfigError(
                f"value_range: {list(value_range)}; expected [lowest, highest], two finite numbers"
            )
        return PixelFormat(channels, dtype, (value_range[0], value_range[1]))

    @property
    def extensions(self) -> frozenset[str]:
        """Of the files that can have so many channels."""
        return EXTENSIONS | {NPY} if self.channels in MODES else frozenset({NPY})

    def size(self, path: Path) -> tuple[int, int]:
        """Width and height by the file's header; raises as `read` does, as far as that shows."""
        if path.suffix.lower() == NPY:
            height, width = npy_shape(path, self.channels)
            return width, height
        return header_size(path, self.channels, self.dtype)

    def read(self, path: Path, *, draft_side: int | None = None) -> NDArray[Any]:
        """A file's pixels (H, W, channels); raises one of `ldm.data.decoding.UNREADABLE`.

        draft_side: see `ldm.data.decoding.read_image`.
        """
        if path.suffix.lower() == NPY:
            return read_npy(path, self.channels, dtype=self.dtype, value_range=self.value_range)
        return read_image(
            path,
            self.channels,
            dtype=self.dtype,
            value_range=self.value_range,
            draft_side=draft_side,
        )

    def limits(self, path: Path) -> tuple[float, float]:
        """The numbers of a file that can be read that are lowest and highest as pixels."""
        if path.suffix.lower() == NPY:
            kind = np.load(path, mmap_mode="r", allow_pickle=False).dtype
            limits = np.iinfo(kind) if kind.kind in "iu" else None
            stored = None if limits is None else (float(limits.min), float(limits.max))
            return self.value_range or stored or (0.0, 1.0)
        return stored_range(path) or self.value_range or (0.0, 1.0)
