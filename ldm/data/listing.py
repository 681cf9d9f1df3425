"""Which image files there are, and which of them are for training."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ldm.config import ConfigError, did_you_mean, nearest_path
from ldm.data.decoding import EXTENSIONS
from ldm.hashing import hash64
from ldm.log import log

__all__ = [
    "Split",
    "class_names",
    "class_of",
    "existing_directory",
    "existing_file",
    "in_split",
    "list_files",
    "list_or_hash",
    "position",
    "read_list",
    "split_by_hash",
    "utf8_text",
]

Split = Literal["train", "validation", "all"]


def existing_directory(root: str | Path, *, key: str = "root", expected: str) -> Path:
    """A directory that exists; otherwise ConfigError names the key and what it should hold."""
    path = Path(root).expanduser()
    if path.is_dir():
        return path
    found = f"{path} is a file" if path.exists() else f"there is no directory {path}{_hint(path)}"
    raise ConfigError(f"{key}: {found}; expected {expected}")


def existing_file(file: str | Path, *, key: str, expected: str) -> Path:
    """A file that exists; otherwise ConfigError names the key and what it should hold."""
    path = Path(file).expanduser()
    if path.is_file():
        return path
    found = f"{path} is a directory" if path.exists() else f"there is no file {path}{_hint(path)}"
    raise ConfigError(f"{key}: {found}; expected {expected}")


def _hint(path: Path) -> str:
    near = nearest_path(path.absolute())
    return f"; did you mean {near}?" if near else ""


def list_files(root: Path, extensions: Collection[str] = EXTENSIONS) -> tuple[list[str], set[str]]:
    """Names of the images and, without extension, of the `.txt` files, at any depth below `root`.

    extensions: of the images, in lower case with their dot. Among others, `.npy` files that lie
    beside an image of the same name are left out: they tell something about it.
    Names are relative, with forward slashes; the images are sorted. Hidden files and directories
    are left out, links to directories are followed once.
    Raises ConfigError when there are no images.
    """
    images, texts, visited = [], set(), set()
    for directory, subdirectories, files in os.walk(root, followlinks=True):
        real = os.path.realpath(directory)
        if real in visited:
            subdirectories.clear()
            continue
        visited.add(real)
        subdirectories[:] = sorted(name for name in subdirectories if _is_shown(name))
        below = Path(directory).relative_to(root).as_posix()
        prefix = "" if below == "." else f"{below}/"
        for name in filter(_is_shown, files):
            stem, extension = os.path.splitext(name)
            if extension.lower() in extensions:
                images.append(prefix + name)
            elif extension.lower() == ".txt":
                texts.add(prefix + stem)
    if not images:
        raise ConfigError(
            f"{root} holds no images; expected files ending in {' '.join(sorted(extensions))}, "
            "in it or below it"
        )
    return _without_arrays_of_images(sorted(images)), texts


def _without_arrays_of_images(names: list[str]) -> list[str]:
    arrays = {name for name in names if name.lower().endswith(".npy")}
    stems = {os.path.splitext(name)[0] for name in names if name not in arrays} if arrays else ()
    return [name for name in names if name not in arrays or name[: -len(".npy")] not in stems]


def _is_shown(name: str) -> bool:
    return not name.startswith((".", "__MACOSX"))


def class_names(names: Sequence[str]) -> list[str]:
    """The first directories of the names, sorted; none when an image lies in the root itself."""
    if any("/" not in name for name in names):
        return []
    return sorted({class_of(name) for name in names})


def class_of(name: str) -> str:
    """The first directory of a name."""
    return name.partition("/")[0]


def utf8_text(path: Path) -> str:
    """The text of a file, without a byte order mark; ConfigError names the file if not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text: {error.reason}") from None


def read_list(path: Path) -> list[str]:
    """The lines of a text file that names one image each; blank lines do not count."""
    return [line.strip() for line in utf8_text(path).splitlines() if line.strip()]


def split_by_hash(names: Sequence[str], split: Split, val_fraction: float) -> list[str]:
    """The names of one split, in their order: `in_split` of their places."""
    positions = np.array([position(name) for name in names], dtype=np.float64)
    chosen = in_split(positions, split, val_fraction)
    return [name for name, is_chosen in zip(names, chosen.tolist(), strict=True) if is_chosen]


def in_split(
    positions: NDArray[np.float64], split: Split, val_fraction: float
) -> NDArray[np.bool_]:
    """Which of the images are in a split, by the places (N,) in [0, 1) that `position` gives.

    Whether a name is for validation depends on the name alone, so it stays what it is when files
    are added. Neither split of two or more names is empty.
    Raises ConfigError for a fraction or split that cannot be.
    """
    if split not in get_args(Split):
        raise ConfigError(
            f"split: {split!r}; expected 'train', 'validation' or 'all'"
            + did_you_mean(split, get_args(Split))
        )
    if not 0 <= val_fraction < 1:
        raise ConfigError(f"val_fraction: {val_fraction}; expected at least 0 and below 1")
    count = len(positions)
    if split == "all" or (val_fraction == 0 and split == "train"):
        return np.ones(count, dtype=np.bool_)
    if val_fraction == 0 or count < 2:
        raise ConfigError(
            f"split: {split!r} of {count} images with val_fraction {val_fraction} is empty; "
            "expected two images or more and a fraction above 0, or split 'all'"
        )
    held_out = positions < val_fraction
    held_out[positions.argmin()] = True
    held_out[count - 1 - positions[::-1].argmax()] = False
    return held_out if split == "validation" else ~held_out


def list_or_hash(
    names: Sequence[str], file: Path, split: Literal["train", "validation"]
) -> list[str]:
    """The names that a split's list has, or the split by hash when there is no such list.

    Extensions are not compared: images may have been converted since the list was written.
    Raises ConfigError when the list has none of the names.
    """
    if not file.is_file():
        log.info("there is no list %s: 5 %% of the images are for validation, by hash", file)
        return split_by_hash(names, split, 0.05)
    wanted = {os.path.splitext(line)[0] for line in read_list(file)}
    chosen = [name for name in names if os.path.splitext(name)[0] in wanted]
    if not chosen:
        raise ConfigError(
            f"txt_file: none of the {len(wanted)} names in {file} is an image of the data set; "
            f"it has, e.g., {names[0]}, the list {min(wanted, default='nothing')}"
        )
    if len(chosen) < len(wanted):
        log.warning(
            "%s: %d of its %d images are missing", file, len(wanted) - len(chosen), len(wanted)
        )
    return chosen


def position(name: str) -> float:
    """A number in [0, 1] that is a function of the name, evenly spread over names."""
    return hash64(name.encode("utf-8", "surrogateescape")) / 2**64
