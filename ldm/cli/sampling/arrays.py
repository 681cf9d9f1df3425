"""Many images as one NumPy file, written without holding them all."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

__all__ = ["write_npz"]


def write_npz(images: Iterable[NDArray[np.uint8]], shape: tuple[int, ...], path: Path) -> None:
    """Write images (H, W, C) as `arr_0`, uint8 of `shape` (N, H, W, C), one at a time.

    The layout that evaluation code for ADM (arXiv:2105.05233) reads, whole or not at all.
    Raises ValueError unless there are N images, all of one size.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    header = {"descr": npy.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False}
    try:
        with (
            zipfile.ZipFile(part, "w", allowZip64=True) as archive,
            archive.open("arr_0.npy", "w", force_zip64=True) as file,
        ):
            npy.write_array_header_2_0(file, {**header, "shape": shape})
            count = 0
            for count, image in enumerate(images, start=1):
                if image.shape != shape[1:]:
                    raise ValueError(f"image {count - 1} is {image.shape}, expected {shape[1:]}")
                file.write(np.ascontiguousarray(image, dtype=np.uint8).tobytes())
        if count != shape[0]:
            raise ValueError(f"there are {count} images, expected {shape[0]}")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
