"""Images with maps of labels, in two directories.

root/images/street/0001.jpg
root/maps/street/0001.png      a label for each pixel: palette or grey, or a .npy of integers
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm.config import ConfigError
from ldm.data.decoding import UNREADABLE, reason
from ldm.data.images import ImageFiles
from ldm.data.listing import Split, existing_directory, list_files, split_by_hash
from ldm.data.maps import EXTENSIONS, labels_in_range, read_map
from ldm.data.transforms import Framing, Interpolation
from ldm.ranges import NonNegative, Positive

__all__ = ["ImageMapFolder"]

_NAMED = 3  # of the images that have no map


class ImageMapFolder(ImageFiles):
    """Every image below `root/images`, with the map of the same name below `root/maps`.

    size: side of the images in pixels, or [height, width]: the largest window of these proportions
        is cut out and resized, the same one of both.
    num_labels: number K of labels, 0 to K - 1, background included: `in_channels` of the encoder.
    void: a number in the maps that stands for no label, such as 255; it becomes -1, for which the
        encoder sees nothing.
    split, val_fraction, random_crop, flip_p, interpolation: as in `ldm.data.folder.ImageFolder`.
    images, maps: names of the two directories.

    An item holds `image` (H, W, 3) uint8, `segmentation` (H, W) int64 and `relpath`. Maps are
    resized to the nearest pixel, and mirrored with their images.

    A pair that cannot be read, or whose image and map are of different sizes, is bad: named, and
    replaced by its neighbour. Raises ConfigError for a missing directory, for images without maps,
    and for a label out of range.
    """

    def __init__(
        self,
        root: str | Path,
        size: int | Sequence[int] = 256,
        *,
        num_labels: Positive,
        void: NonNegative | None = None,
        split: Split = "train",
        val_fraction: float = 0.05,
        random_crop: bool = False,
        flip_p: float = 0.0,
        interpolation: Interpolation = "bicubic",
        images: str = "images",
        maps: str = "maps",
    ) -> None:
        framing = Framing.of(
            size, random_crop=random_crop, flip_p=flip_p, interpolation=interpolation
        )
        self._map_framing = Framing.of(
            size, random_crop=random_crop, flip_p=flip_p, interpolation="nearest"
        )
        self.num_labels, self.void = num_labels, void
        expected = f"a directory with {images}/ and {maps}/"
        existing_directory(root, expected=expected)
        places = [
            existing_directory(Path(root).expanduser() / name, expected=f"{expected}, of one name")
            for name in (images, maps)
        ]
        names, _ = list_files(places[0])
        self._maps = _paired(places[1], names)
        super().__init__(places[0], split_by_hash(names, split, val_fraction), framing)

    def facts(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The map of a sample, framed as its image will be: with the draws that are next."""
        path = self._maps[self.names[index]]
        labels = labels_in_range(self._map, self.num_labels, str(path), self.void)
        framed = self._map_framing(labels[..., None], copy.deepcopy(rng))
        return {"segmentation": np.ascontiguousarray(framed[..., 0])}

    def _pixels(self, name: str) -> NDArray[Any] | str:
        """An image's pixels, or what is wrong with it or its map, which is kept for `facts`."""
        pixels = super()._pixels(name)
        if isinstance(pixels, str):
            return pixels
        try:
            self._map = read_map(self._maps[name])
        except UNREADABLE as error:
            return f"its map: {reason(error)}"
        if self._map.shape != pixels.shape[:2]:
            sizes = [" x ".join(map(str, each)) for each in (self._map.shape, pixels.shape[:2])]
            return f"its map has {sizes[0]} pixels, it has {sizes[1]}"
        return pixels


def _paired(maps: Path, names: Sequence[str]) -> dict[str, Path]:
    """The map of each image; ConfigError for images without any."""
    found = {os.path.splitext(name)[0]: name for name in list_files(maps, EXTENSIONS)[0]}
    alone = [name for name in names if os.path.splitext(name)[0] not in found]
    if alone:
        more = f", and {len(alone) - _NAMED} more" if len(alone) > _NAMED else ""
        raise ConfigError(
            f"root: {len(alone)} of {len(names)} images have no map in {maps}: "
            f"{', '.join(alone[:_NAMED])}{more}; expected .png or .npy files of the same names"
        )
    return {name: maps / found[os.path.splitext(name)[0]] for name in names}
