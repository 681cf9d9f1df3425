"""LSUN scenes and objects: a directory of exported images, and a list of each split's names.

    data/lsun/churches/*.jpg     data/lsun/church_outdoor_train.txt, church_outdoor_val.txt
    data/lsun/bedrooms/*.jpg     data/lsun/bedrooms_train.txt, bedrooms_val.txt
    data/lsun/cats/*.jpg         data/lsun/cat_train.txt, cat_val.txt

Without a list, the directory is split by a hash of the names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ldm.data.images import ImageFiles
from ldm.data.listing import existing_directory, list_files, list_or_hash
from ldm.data.transforms import Framing, Interpolation

__all__ = [
    "LSUNBase",
    "LSUNBedroomsTrain",
    "LSUNBedroomsValidation",
    "LSUNCatsTrain",
    "LSUNCatsValidation",
    "LSUNChurchesTrain",
    "LSUNChurchesValidation",
]


class LSUNBase(ImageFiles):
    """Images of one split, cut to their central square.

    data_root: the directory.  txt_file: list of the split's names, relative to it; by default the
        one that lies beside the directory.
    size: side in pixels.  flip_p: probability of a mirrored image, by default 0.5 in training.
    interpolation: a filter of `Framing`, or `linear` for bilinear.

    An item holds `image` (size, size, 3) uint8, `relative_file_path_` and `file_path_`.
    """

    part: ClassVar[Literal["train", "validation"]] = "train"
    default_list: ClassVar[str] = "data/lsun/train.txt"
    default_root: ClassVar[str] = "data/lsun"

    def __init__(
        self,
        txt_file: str | None = None,
        data_root: str | None = None,
        size: int = 256,
        interpolation: Interpolation | Literal["linear"] = "bicubic",
        flip_p: float | None = None,
    ) -> None:
        if flip_p is None:
            flip_p = 0.5 if self.part == "train" else 0.0
        framing = Framing.of(
            size,
            flip_p=flip_p,
            interpolation="bilinear" if interpolation == "linear" else interpolation,
        )
        directory = existing_directory(
            data_root or self.default_root,
            key="data_root",
            expected="the images exported from the LSUN database, at any depth",
        )
        names, _ = list_files(directory)
        file = Path(txt_file or directory.parent / Path(self.default_list).name)
        chosen = list_or_hash(names, file, self.part)
        super().__init__(directory, chosen, framing)

    def facts(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Where a sample comes from."""
        name = self.names[index]
        return {"relative_file_path_": name, "file_path_": str(self.root / name)}


class LSUNChurchesTrain(LSUNBase):
    """Churches, for training."""

    default_list = "data/lsun/church_outdoor_train.txt"
    default_root = "data/lsun/churches"


class LSUNChurchesValidation(LSUNBase):
    """Churches, for validation."""

    part = "validation"
    default_list = "data/lsun/church_outdoor_val.txt"
    default_root = "data/lsun/churches"


class LSUNBedroomsTrain(LSUNBase):
    """Bedrooms, for training."""

    default_list = "data/lsun/bedrooms_train.txt"
    default_root = "data/lsun/bedrooms"


class LSUNBedroomsValidation(LSUNBase):
    """Bedrooms, for validation."""

    part = "validation"
    default_list = "data/lsun/bedrooms_val.txt"
    default_root = "data/lsun/bedrooms"


class LSUNCatsTrain(LSUNBase):
    """Cats, for training."""

    default_list = "data/lsun/cat_train.txt"
    default_root = "data/lsun/cats"


class LSUNCatsValidation(LSUNBase):
    """Cats, for validation."""

    part = "validation"
    default_list = "data/lsun/cat_val.txt"
    default_root = "data/lsun/cats"
