"""Images with maps of labels, in two directories.

root/images/street/0001.jpg
root/maps/street/0001.png      a label for each pixel: palette or grey, or a .npy of integers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm.config import ConfigError
from ldm.data.beside import paired, require_one_size, require_one_size_by_headers
from ldm.data.decoding import UNREADABLE, reason
from ldm.data.images import ImageFiles
from ldm.data.listing import Split, existing_directory, list_files, split_by_hash
from ldm.data.maps import EXTENSIONS, labels_in_range, map_size, read_map
from ldm.data.palettes import Palette
from ldm.data.transforms import Framing, Interpolation, Window
from ldm.ranges import NonNegative, Positive

__all__ = ["ImageMapFolder"]


class ImageMapFolder(ImageFiles):
    """Every image below `root/images`, with the map of the same name below `root/maps`.

    size: side of the images in pixels, or [height, width]: the largest window of these proportions
        is cut out and resized, the same one of both.
    num_labels: number K of labels, 0 to K - 1, background included: `in_channels` of the encoder.
    void: a number in the maps that stands for no label, such as 255; it becomes -1, for which the
        encoder sees nothing.
    split, val_fraction, random_crop, flip_p, interpolation: as in `ldm.data.folder.ImageFolder`.
    min_crop, max_crop: the window's side as a fraction of the largest one's, drawn uniformly: 2/3
        and 2/3, with a size of 256, for windows of 256 pixels of images whose short side is 384.
    images, maps: names of the two directories, or paths such as `images/training`.
    palette: for maps that are painted in colours: [red, green, blue] by name, in the order of the
        labels, or a file (`ldm.data.palettes.Palette.of`). PNGs are read by their colours then.

    An item holds `image` (H, W, 3) uint8, `segmentation` (H, W) int64 and `relpath`. Maps are
    resized to the nearest pixel, and mirrored with their images.

    A pair that cannot be read is a `BadSample`. Raises ConfigError for
    a missing directory, for images without maps, for a map of another size than its image, when
    its header is looked at or else when it is used, and for a label out of range or a colour that
    is none of the palette.
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
        min_crop: float = 1.0,
        max_crop: float = 1.0,
        images: str = "images",
        maps: str = "maps",
        palette: Mapping[str, Sequence[int]] | str | Path | None = None,
    ) -> None:
        framing = Framing.of(
            size,
            random_crop=random_crop,
            flip_p=flip_p,
            interpolation=interpolation,
            min_crop=min_crop,
            max_crop=max_crop,
        )
        self._map_framing = replace(framing, interpolation="nearest")
        self.num_labels, self.void = num_labels, void
        self.palette = None if palette is None else Palette.of(palette)
        _require_labels(self.palette, num_labels, void)
        expected = f"a directory with {images}/ and {maps}/"
        existing_directory(root, expected=expected)
        places = [
            existing_directory(Path(root).expanduser() / name, expected=f"{expected}, of one name")
            for name in (images, maps)
        ]
        names, _ = list_files(places[0])
        self._maps = paired(places[1], names, EXTENSIONS, key="root", what="map")
        super().__init__(places[0], split_by_hash(names, split, val_fraction), framing)

    def facts_within(self, index: int, window: Window, *, flips: bool) -> dict[str, Any]:
        """The map of a sample, framed as its image is."""
        path = self._maps[self.names[index]]
        labels = labels_in_range(self._map, self.num_labels, str(path), self.void)
        framed = self._map_framing.framed(labels[..., None], window, flips=flips)
        return {"segmentation": np.ascontiguousarray(framed[..., 0])}

    def _pixels(self, name: str) -> NDArray[Any] | str:
        """An image's pixels, or what is wrong with it or its map, which is kept for later."""
        pixels = super()._pixels(name)
        if isinstance(pixels, str):
            return pixels
        path = self._maps[name]
        try:
            painted = self._painted(path)
            self._map = painted.read(path) if painted else read_map(path)
        except ConfigError:
            raise
        except UNREADABLE as error:
            return f"its map: {reason(error)}"
        require_one_size(self.root / name, pixels.shape[:2], path, self._map.shape, what="map")
        return pixels

    def _inspect(self, name: str) -> str | bool:
        """What is wrong with a pair as far as the headers show, or whether the image is small."""
        found = super()._inspect(name)
        if isinstance(found, str):
            return found
        path = self._maps[name]
        try:
            size = self.pixels.size(self.root / name)[::-1]
            painted = self._painted(path)
            other = painted.size(path) if painted else map_size(path)
        except UNREADABLE as error:
            return f"its map: {reason(error)}"
        require_one_size_by_headers(self.root / name, size, path, other, what="map")
        return found

    def _painted(self, path: Path) -> Palette | None:
        """The palette of a file that is read by its colours."""
        return self.palette if path.suffix.lower() == ".png" else None


def _require_labels(palette: Palette | None, num_labels: int, void: int | None) -> None:
    """Raise ConfigError for a palette with more labels than there are."""
    if palette is None:
        return
    labels = [label for label in range(len(palette.colours)) if label != void]
    if labels and labels[-1] >= num_labels:
        raise ConfigError(
            f"num_labels: {num_labels}; expected {labels[-1] + 1} or more: the palette has "
            f"{len(palette.colours)} colours, {palette.names[labels[-1]]} is label {labels[-1]}"
        )
