"""ImageNet (ILSVRC2012): a directory for each synset, below one for each split.

    data_root/ILSVRC2012_train/data/n01440764/n01440764_10026.JPEG
    data_root/ILSVRC2012_validation/data/n01440764/ILSVRC2012_val_00000293.JPEG

`data_root/train/n01440764/...` is found, too. Nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ldm.config import ConfigError, did_you_mean
from ldm.data.images import ImageFiles
from ldm.data.listing import class_names, existing_directory, list_files
from ldm.data.superres import FILTERS, Degradation, low_resolution
from ldm.data.transforms import Framing

__all__ = ["ImageNetSRTrain", "ImageNetSRValidation", "ImageNetTrain", "ImageNetValidation"]

# published: names of degradations
_DEGRADATIONS: dict[str, Degradation] = {
    "bsrgan": "bsr",
    "bsrgan_light": "bsr_light",
    "cv_nearest": "cv_nearest",
    "cv_bilinear": "cv_bilinear",
    "cv_bicubic": "cv_bicubic",
    "cv_area": "cv_area",
    "cv_lanczos": "cv_lanczos",
    **{f"pil_{name}": method for method, name in FILTERS.items()},
}


class _Synsets(ImageFiles):
    """The images of one split, with their classes.

    An item holds `image` (size, size, 3) uint8; `class_label`, the index of its synset in sorted
    order, 0 to 999; `synset`; `human_label`, the synset's words where a `synset_human.txt` (lines
    of "n01440764 tench, Tinca tinca") lies beside the data, else the synset; `relpath`.
    """

    part: ClassVar[str]

    def __init__(self, data_root: str | None, framing: Framing) -> None:
        directory = _directory(self.part, data_root)
        names, _ = list_files(directory)
        self.class_names = class_names(names)
        if not self.class_names:
            raise ConfigError(f"data_root: {directory} has images outside of synset directories")
        self._words = _synset_words(directory.parent / "synset_human.txt")
        super().__init__(directory, names, framing)

    def facts(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The class of a sample."""
        facts = self.class_facts(index)
        synset = facts["human_label"]
        return {**facts, "synset": synset, "human_label": self._words.get(synset, synset)}


class ImageNetTrain(_Synsets):
    """The training images.

    config: `size` in pixels (256), and `random_crop` along the longer side (true).
    data_root: see the module; by default `~/.cache/autoencoders/data`, the 2022 release's place.
    """

    part = "train"

    def __init__(
        self, config: Mapping[str, Any] | None = None, data_root: str | None = None
    ) -> None:
        options = {"size": 256, "random_crop": self.part == "train"}
        for key in config or {}:
            if key not in options:
                raise ConfigError(
                    f"config.{key}: expected {' or '.join(options)}{did_you_mean(key, options)}"
                )
        options |= config or {}
        framing = Framing.of(options["size"], random_crop=bool(options["random_crop"]))
        super().__init__(data_root, framing)


class ImageNetValidation(ImageNetTrain):
    """The validation images; `random_crop` is false unless given."""

    part = "validation"


class ImageNetSRTrain(_Synsets):
    """Training pairs of an image and a smaller, degraded copy of it.

    size: side of the image in pixels.
    degradation: `bsrgan`, `bsrgan_light`, `cv_` and the name of one of OpenCV's filters (nearest,
        bilinear, bicubic, area, lanczos), or `pil_` and one of Pillow's (nearest, bilinear,
        bicubic, box, hamming, lanczos); see `ldm.data.superres.low_resolution`, where the first two
        are `bsr` and `bsr_light`.
    downscale_f: the copy's side is size / downscale_f.
    min_crop_f, max_crop_f: side of the window that is cut out, as a fraction of the short side.
    random_crop: anywhere instead of in the centre.  data_root: as for `ImageNetTrain`.

    An item also holds `LR_image` (size / downscale_f, size / downscale_f, 3) uint8.
    """

    part = "train"

    def __init__(
        self,
        size: int,
        degradation: str,
        downscale_f: int = 4,
        min_crop_f: float = 0.5,
        max_crop_f: float = 1.0,
        random_crop: bool = True,
        data_root: str | None = None,
    ) -> None:
        if degradation not in _DEGRADATIONS:
            raise ConfigError(
                f"degradation: {degradation!r}; expected one of {', '.join(_DEGRADATIONS)}"
                + did_you_mean(degradation, _DEGRADATIONS)
            )
        if downscale_f < 1 or size % downscale_f:
            raise ConfigError(f"downscale_f: {downscale_f}; expected a divisor of the size {size}")
        self._factor, self._method = downscale_f, _DEGRADATIONS[degradation]
        framing = Framing.of(
            size,
            random_crop=random_crop,
            interpolation="box",
            min_crop=min_crop_f,
            max_crop=max_crop_f,
        )
        super().__init__(data_root, framing)

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The sample at `index` and its degraded copy."""
        found = super().item(index, rng)
        small = low_resolution(found["image"], self._factor, self._method, rng)
        return {**found, "LR_image": small}


class ImageNetSRValidation(ImageNetSRTrain):
    """Validation pairs; parameters and items as for `ImageNetSRTrain`."""

    part = "validation"


def _directory(part: str, data_root: str | None) -> Path:
    """The directory of a split's synsets."""
    if data_root is None:
        cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
        data_root = f"{cache}/autoencoders/data"
    layout = f"ILSVRC2012_{part}/data/n01440764/*.JPEG or {part}/n01440764/*.JPEG in it"
    root = existing_directory(data_root, key="data_root", expected=layout)
    places = [root / f"ILSVRC2012_{part}" / "data", root / part]
    if part == "validation":
        places.append(root / "val")
    for place in places:
        if place.is_dir():
            return place
    raise ConfigError(f"data_root: nothing for {part} in {root}; expected {layout}")


def _synset_words(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return {synset: words for synset, _, words in (line.partition(" ") for line in lines)}
