"""Maps of labels: one integer per pixel, from files and data sets, and as pictures."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm.config import ConfigError
from ldm.data.arrays import npy_shape
from ldm.data.opening import opened
from ldm.data.wrapped import Wrapped, entry
from ldm.ranges import NonNegative, Positive

__all__ = [
    "EXTENSIONS",
    "NO_LABEL",
    "Labels",
    "SemanticMaps",
    "colour_of",
    "coloured",
    "labels_in_range",
    "map_size",
    "read_map",
]

Labels = NDArray[np.int64]

EXTENSIONS = frozenset({".png", ".npy"})  # of files that keep labels as they are
NO_LABEL = -1  # of pixels about which a map says nothing

# Pillow's modes whose numbers are labels: palette, grey of 1, 8 and 16 bits
_MODES = frozenset({"P", "L", "1", "I", "I;16"})
_PNG_BITS = 24  # place of the number of bits per pixel in a PNG, in its first 26 bytes
_GOLDEN = (5**0.5 - 1) / 2  # turns of the colour circle that lead furthest from all before


def map_size(path: Path) -> tuple[int, int]:
    """Height and width of a map, by the file's header; raises as `read_map` does."""
    if path.suffix.lower() == ".npy":
        return npy_shape(path, 1)
    with opened(path) as image:
        _require_labels(image)
        return image.height, image.width


def read_map(path: Path) -> Labels:
    """The labels (H, W) of a PNG or a `.npy` file.

    A PNG is of 1 to 8 bits with a palette, whose indices are the labels, or grey of 1 to 16 bits,
    whose levels are: 0 to 15 of 4 bits. A `.npy` holds integers (H, W) or (H, W, 1).
    Raises one of `ldm.data.decoding.UNREADABLE` for anything else, a JPEG among it, which does not
    keep labels as they are.
    """
    if path.suffix.lower() == ".npy":
        height, width = npy_shape(path, 1)
        values = np.load(path, allow_pickle=False)
        if values.dtype.kind not in "iub":
            raise ValueError(f"holds {values.dtype}, expected integers, a label for each pixel")
        return np.asarray(values.reshape(height, width), dtype=np.int64)
    with opened(path) as image:
        _require_labels(image)
        levels = np.asarray(image).astype(np.int64)
        return levels // _unit(path) if image.mode == "L" else levels


def _require_labels(image: Image.Image) -> None:
    if image.format != "PNG":
        raise ValueError(f"is a {image.format} file, expected a PNG or a .npy, which keep labels")
    if image.mode not in _MODES:
        raise ValueError(
            f"is an image of mode {image.mode}, expected one with a palette or a grey one, whose "
            "numbers are labels"
        )


def _unit(path: Path) -> int:
    """What Pillow makes of a step of a grey PNG: it brings 2 and 4 bits to 0..255."""
    with path.open("rb") as file:
        bits = file.read(_PNG_BITS + 1)[_PNG_BITS]
    return 255 // ((1 << bits) - 1)


def labels_in_range(
    labels: NDArray[Any], num_labels: int, name: str, void: int | None = None
) -> Labels:
    """A map (H, W) of labels 0 to num_labels - 1; pixels of `void` become `NO_LABEL`.

    Raises ConfigError that gives the name of the map, the label and the range.
    """
    known = np.asarray(labels, dtype=np.int64)
    is_void = np.zeros(known.shape, bool) if void is None else known == void
    outside = known[((known < 0) | (known >= num_labels)) & ~is_void]
    if outside.size:
        found = f"has the label {outside[0]}"
        raise ConfigError(f"{name}: {found}, expected 0 to {num_labels - 1}")
    return np.where(is_void, NO_LABEL, known)


def coloured(labels: NDArray[Any]) -> NDArray[np.uint8]:
    """A picture (..., 3) uint8 of labels (...): always the same colour for the same label.

    Label 0 is dark grey, the others go round the colour circle; no label is black.
    """
    known = np.asarray(labels, dtype=np.int64).clip(NO_LABEL)
    palette = [colour_of(label) for label in range(NO_LABEL, int(known.max(initial=0)) + 1)]
    table = np.array(palette, dtype=np.uint8)
    return table[known - NO_LABEL]  # type: ignore[no-any-return]


def colour_of(label: int) -> tuple[int, int, int]:
    """Red, green and blue of a label, 0 to 255 each, dark enough to be read on white.

    The same everywhere: in maps, and of the class of that number in layouts.
    """
    if label <= 0:
        return (0, 0, 0) if label < 0 else (64, 64, 64)
    turn, value = label * _GOLDEN % 1, 0.8 - 0.3 * (label // 8 % 2)
    red, green, blue = colorsys.hsv_to_rgb(turn, 0.9, value)
    return round(255 * red), round(255 * green), round(255 * blue)


class SemanticMaps(Wrapped):
    """Another data set whose maps of labels are held to a range.

    source: the data set, whose items have maps (H, W) of integers.
    num_labels: number K of labels, 0 to K - 1, background included: `in_channels` of the encoder.
    void: a number in the maps that stands for no label, such as 255; it becomes -1, for which the
        encoder sees nothing.
    key: entry that holds the map.

    An item is that of the source, its map (H, W) int64. A batch holds no one-hot channels: the
    encoder makes of labels what these would give (`ldm.conditioning.spatial.SpatialRescaler`).
    Raises ConfigError that names the sample, for a label out of range.
    """

    def __init__(
        self,
        source: Any,
        num_labels: Positive,
        *,
        void: NonNegative | None = None,
        key: str = "segmentation",
    ) -> None:
        super().__init__(source)
        self.num_labels, self.void, self.key = num_labels, void, key

    def changed(self, item: dict[str, Any], index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The item, its labels in range."""
        labels = np.asarray(entry(item, self.key, self.source))
        name = f"{self.key} of {item.get('relpath', f'sample {index}')}"
        if labels.ndim != 2 or labels.dtype.kind not in "iub":
            found = f"{labels.dtype} of shape {labels.shape}"
            raise ConfigError(f"{name}: is {found}, expected integers (H, W)")
        return {**item, self.key: labels_in_range(labels, self.num_labels, name, self.void)}
