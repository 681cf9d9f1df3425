"""Lists of the names of a split, which data sets look for beside their images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ldm.config import ConfigError
from ldm.data.listing import read_list, split_by_hash
from ldm.hashing import hash64
from ldm.log import log
from ldm.preparation.journal import write_whole
from ldm.preparation.record import stem

__all__ = ["by_hash", "held_out", "listed", "published_lists", "write_list", "write_split"]

_NAMED = 5  # missing names in one message; the others are counted


def write_list(path: Path, names: Sequence[str]) -> None:
    """Write a list, one name to a line, so that it is there whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(f"{name}\n" for name in names).encode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def published_lists(directory: str | None, *files: str) -> Path | None:
    """The directory of a flag `--lists`, None when it is not given.

    Raises ConfigError when one of the lists is not there: before hours of work, not after them.
    """
    if directory is None:
        return None
    for file in files:
        _require_list(Path(directory, file))
    return Path(directory)


def listed(names: Sequence[str], file: Path, key: Callable[[str], str] = stem) -> list[str]:
    """The names that a published list means, in their own order.

    key: what a name of ours and a line of the list have in common; directories and endings differ.
    Raises ConfigError when the list cannot be read or one of its lines is no name of ours.
    """
    _require_list(file)
    wanted = {key(line): line for line in read_list(file)}
    chosen = [name for name in names if key(name) in wanted]
    missing = sorted(wanted[each] for each in wanted.keys() - set(map(key, chosen)))
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise ConfigError(
            f"{file}: {len(missing)} of its {len(wanted)} names are no image of the source: "
            f"{', '.join(missing[:_NAMED])}{more}; expected a list of these images, or none there, "
            "for a division by hash"
        )
    return chosen


def write_split(
    names: Sequence[str],
    files: tuple[Path, Path],
    divide: Callable[[Sequence[str]], tuple[list[str], list[str]]],
    *,
    lists: Path | None,
    key: Callable[[str], str] = stem,
) -> tuple[list[str], list[str]]:
    """Write the lists of two parts of the images; returns their names.

    lists: directory with published lists of the same file names. None takes those that are there
    already, of a published or an earlier split, and otherwise those that `divide` makes by hash.
    key: as in `listed`.
    Raises ConfigError for lists that do not fit the images, or have names in common.
    """
    is_kept = lists is None and all(file.is_file() for file in files)
    if is_kept:
        log.info("%s and %s are there and kept", *files)
        lists = files[0].parent
    if lists is not None:
        first, second = (listed(names, lists / file.name, key) for file in files)
        both = set(first).intersection(second)
        if both:
            raise ConfigError(
                f"--lists {lists}: {len(both)} images are in both lists, {min(both)} among them; "
                "expected each in one"
            )
        could = sum(map(len, divide(names)))
        if is_kept and len(first) + len(second) < could:
            log.warning(
                "they name %d images, of %d that could be: remove both to divide all by hash",
                len(first) + len(second),
                could,
            )
    else:
        first, second = divide(names)
        log.info("there are no published lists (--lists DIR): the images are divided by hash")
    for file, part in zip(files, (first, second), strict=True):
        write_list(file, part)
        log.info("%s: %d images", file, len(part))
    return first, second


def held_out(names: Sequence[str], val_fraction: float) -> tuple[list[str], list[str]]:
    """Names for training and for validation, as data sets without lists divide them."""
    return (
        split_by_hash(names, "train", val_fraction),
        split_by_hash(names, "validation", val_fraction),
    )


def by_hash(names: Sequence[str]) -> list[str]:
    """The names in an order that is a function of each name alone, as if shuffled."""
    return sorted(names, key=lambda name: (hash64(name.encode()), name))


def _require_list(file: Path) -> None:
    if not file.is_file():
        raise ConfigError(f"--lists: there is no list {file}; expected one image name to a line")
