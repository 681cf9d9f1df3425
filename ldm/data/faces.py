"""Faces: CelebA-HQ, FFHQ, and both together.

    data/celebahq/*.png     data/celebahqtrain.txt, data/celebahqvalidation.txt
    data/ffhq/*.png         data/ffhqtrain.txt, data/ffhqvalidation.txt

A list may name the `.npy` arrays of the 2022 release: only the names before the extension count,
the images are image files. Without a list, the directory is split by a hash of the names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torch.utils.data import Dataset

from ldm.data.images import ImageFiles
from ldm.data.listing import existing_directory, list_files, list_or_hash
from ldm.data.substitutes import Fault
from ldm.data.transforms import Framing

__all__ = [
    "CelebAHQTrain",
    "CelebAHQValidation",
    "FFHQTrain",
    "FFHQValidation",
    "FacesHQTrain",
    "FacesHQValidation",
]


class _Faces(ImageFiles):
    """Images of one split, cut to their central square.

    size: side in pixels.  keys: entries that an item keeps, by default all.
    data_root: the directory.  txt_file: list of the split's names, relative to it; by default the
        one that lies beside the directory.
    flip_p: probability of a mirrored image.

    An item holds `image` (size, size, 3) uint8, `relpath` and `file_path_`.
    """

    part: ClassVar[Literal["train", "validation"]] = "train"
    dataset_name: ClassVar[str]

    def __init__(
        self,
        size: int = 256,
        keys: Sequence[str] | None = None,
        *,
        data_root: str | None = None,
        txt_file: str | None = None,
        flip_p: float = 0.0,
    ) -> None:
        self._keys = None if keys is None else list(keys)
        directory = existing_directory(
            data_root or f"data/{self.dataset_name}",
            key="data_root",
            expected="the images as files, at any depth",
        )
        names, _ = list_files(directory)
        file = Path(txt_file or directory.parent / f"{self.dataset_name}{self.part}.txt")
        framing = Framing.of(size, flip_p=flip_p)
        super().__init__(directory, list_or_hash(names, file, self.part), framing)

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The sample at `index`, as far as `keys` goes."""
        found = super().item(index, rng)
        return {key: found[key] for key in found if self._keys is None or key in self._keys}

    def facts(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Where a sample comes from."""
        return {"file_path_": str(self.root / self.names[index])}


class CelebAHQTrain(_Faces):
    """CelebA-HQ, for training."""

    dataset_name = "celebahq"


class CelebAHQValidation(CelebAHQTrain):
    """CelebA-HQ, for validation."""

    part = "validation"


class FFHQTrain(_Faces):
    """FFHQ, for training."""

    dataset_name = "ffhq"


class FFHQValidation(FFHQTrain):
    """FFHQ, for validation."""

    part = "validation"


class FacesHQTrain(Dataset[dict[str, Any]]):
    """CelebA-HQ and then FFHQ, for training.

    size, keys, flip_p: as for either.  celebahq_root, ffhq_root: their directories.

    An item also holds `class_label`, 0 for CelebA-HQ and 1 for FFHQ.
    """

    class_names = ("CelebA-HQ", "FFHQ")
    sources: ClassVar[tuple[type[_Faces], ...]] = (CelebAHQTrain, FFHQTrain)

    def __init__(
        self,
        size: int = 256,
        keys: Sequence[str] | None = None,
        *,
        celebahq_root: str | None = None,
        ffhq_root: str | None = None,
        flip_p: float = 0.0,
    ) -> None:
        self._parts = [
            source(size, keys, data_root=root, flip_p=flip_p)
            for source, root in zip(self.sources, (celebahq_root, ffhq_root), strict=True)
        ]

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item with the random choices of epoch 0."""
        return self.item(index, np.random.default_rng([0, 0, index]))

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The sample at `index`."""
        label, place = self._part(index)
        return {**self._parts[label].item(place, rng), "class_label": label}

    def name_of(self, index: int) -> str:
        """The file of a sample."""
        label, place = self._part(index)
        return self._parts[label].name_of(place)

    def known_bad(self) -> list[Fault]:
        """The samples of both that are known to be bad."""
        return [fault for part in self._parts for fault in part.known_bad()]

    def _part(self, index: int) -> tuple[int, int]:
        """Which of the two a sample is of, and its place there."""
        first = len(self._parts[0])
        return (0, index) if index < first else (1, index - first)


class FacesHQValidation(FacesHQTrain):
    """CelebA-HQ and then FFHQ, for validation."""

    sources = (CelebAHQValidation, FFHQValidation)
