"""Photographs that are stored on their side."""

from pathlib import Path

import numpy as np
from PIL import Image


def turned(path: Path, orientation: int, height: int = 16, width: int = 32) -> Path:
    """An image file of so many pixels as it is stored, with an EXIF orientation, 1 to 8."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(levels).save(path, exif=exif)
    return path
