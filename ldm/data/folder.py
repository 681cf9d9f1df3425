"""Your own images: a directory, or a list of files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm.config import ConfigError
from ldm.data.arrays import Dtype
from ldm.data.captions import Captions, taken
from ldm.data.images import ImageFiles
from ldm.data.listing import (
    Split,
    class_names,
    existing_directory,
    existing_file,
    list_files,
    read_list,
    split_by_hash,
)
from ldm.data.pixels import PixelFormat
from ldm.data.transforms import Framing, Interpolation
from ldm.log import log
from ldm.ranges import Positive

__all__ = ["ImageFolder", "ImageList"]

_SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test"})


class ImageFolder(ImageFiles):
    """Every image below a directory.

    root: the directory, searched at any depth.
    size: side of the images in pixels, or [height, width]: the largest window of these proportions
        is cut out and resized.
    split: `train`, `validation`, or `all` for a directory that is one split by itself.
    val_fraction: share of the images held out for validation, by a hash of their names.
    random_crop: cut the window at random along the longer side instead of from the centre.
    flip_p: probability of a mirrored image; a caption that says left or right prevents it.
    captions: read the captions, where there are any.
    random_caption: one of an image's captions, drawn anew each time, or the first; by default
        drawn where the split is `train`.
    interpolation, fast_decode: as in `Framing` and `ImageFiles`.
    channels, dtype, value_range: as in `PixelFormat`. With other than 1, 3 or 4 channels, `.npy`
        files alone are looked for; otherwise those that lie beside an image of the same name are
        left out.

    An item holds `image` (H, W, channels), uint8 or float32, and `relpath`; when all images lie in
    sub-directories, `class_label` and `human_label`, the index and name of the first of them (the
    names are in `class_names`, sorted); when there are captions (`ldm.data.captions`), `caption`.

    Raises ConfigError when the directory is missing, holds no images, or no image can be used, and
    for captions that are of other images.
    """

    def __init__(
        self,
        root: str | Path,
        size: int | Sequence[int] = 256,
        *,
        split: Split = "train",
        val_fraction: float = 0.05,
        random_crop: bool = False,
        flip_p: float = 0.0,
        interpolation: Interpolation = "bicubic",
        channels: Positive = 3,
        fast_decode: bool = False,
        dtype: Dtype = "uint8",
        value_range: Sequence[float] | None = None,
        captions: bool = True,
        random_caption: bool | None = None,
    ) -> None:
        framing = Framing.of(
            size, random_crop=random_crop, flip_p=flip_p, interpolation=interpolation
        )
        pixels = PixelFormat.of(channels, dtype, value_range)
        directory = existing_directory(root, expected="a directory of images")
        names, texts = list_files(directory, pixels.extensions)
        # classes and captions are those of the whole directory, the same for every split
        self.class_names = class_names(names)
        if self.class_names and _SPLIT_NAMES.issuperset(self.class_names):
            log.warning(
                "%s: its directories are taken for classes: %s. If they are splits, give one of "
                "them as root, with split: all",
                directory,
                ", ".join(self.class_names),
            )
        self._captions = Captions.find(directory, names, texts) if captions else None
        chosen = split_by_hash(names, split, val_fraction)
        self._is_random = split == "train" if random_caption is None else random_caption
        log.info(
            "%s: %d of %d images (%s), %d classes, %s captions",
            directory,
            len(chosen),
            len(names),
            split,
            len(self.class_names),
            "with" if self._captions else "no",
        )
        super().__init__(directory, chosen, framing, pixels=pixels, fast_decode=fast_decode)

    def facts(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Class and caption of a sample, as far as the directory has them."""
        facts = self.class_facts(index) if self.class_names else {}
        if self._captions:
            texts = self._captions.of(self.names[index])
            facts["caption"] = taken(texts, rng, is_random=self._is_random)
        return facts


class ImageList(ImageFiles):
    """The images that a text file names, one to a line.

    file: the list.  root: directory its names are relative to, by default the list's own.
    The other parameters and the items are those of `ImageFolder`, without classes and captions. A
    list is one split by itself.

    Raises ConfigError when the list is missing, empty, or names no image that can be used.
    """

    def __init__(
        self,
        file: str | Path,
        root: str | Path | None = None,
        size: int | Sequence[int] = 256,
        *,
        random_crop: bool = False,
        flip_p: float = 0.0,
        interpolation: Interpolation = "bicubic",
        channels: Positive = 3,
        fast_decode: bool = False,
        dtype: Dtype = "uint8",
        value_range: Sequence[float] | None = None,
    ) -> None:
        framing = Framing.of(
            size, random_crop=random_crop, flip_p=flip_p, interpolation=interpolation
        )
        pixels = PixelFormat.of(channels, dtype, value_range)
        path = existing_file(file, key="file", expected="a list, one image name to a line")
        directory = existing_directory(
            path.parent if root is None else root, expected=f"the directory of the files in {path}"
        )
        names = read_list(path)
        if not names:
            raise ConfigError(f"file: {path} is empty; expected one image name to a line")
        super().__init__(directory, names, framing, pixels=pixels, fast_decode=fast_decode)
