"""Places365: the owner's archives to directories of images, and lists for inpainting."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ldm.config import ConfigError
from ldm.data.listing import read_list
from ldm.preparation.archives import is_listed, members
from ldm.preparation.command import plan_of
from ldm.preparation.job import check_count, prepare
from ldm.preparation.lists import by_hash, published_lists, write_split
from ldm.preparation.record import Record

__all__ = [
    "COUNTS",
    "INPAINTING",
    "divide_for_inpainting",
    "prepare_places",
    "read_labels",
    "training_records",
    "validation_records",
]

COUNTS = {"train": 1_803_460, "val": 36_500}
# images for validation and test of inpainting, of all that are in `val`
INPAINTING = {"inpainting_val.txt": 2_000, "inpainting_test.txt": 30_000}
_TRAINING_ROOTS = re.compile(r"data_(large|256)(_standard|_challenge)?|train")
_VALIDATION = re.compile(r"Places365_val_\d{8}\.jpg")


def prepare_places(args: argparse.Namespace) -> None:
    """Write the images of a part, and of `val` the lists, as the script's flags say.

    Raises ConfigError for what the user got wrong.
    """
    labels = None
    if args.part == "train" and (args.labels or args.lists):
        flag = "--labels" if args.labels else "--lists"
        raise ConfigError(f"{flag}: is for the images of --part val; expected no --part train")
    if args.labels:
        labels = read_labels(Path(args.labels))
    lists = published_lists(args.lists, *INPAINTING)
    out = Path(args.out)
    plan = plan_of(
        args,
        args.part,
        expected=COUNTS[args.part],
        what="an archive of Places365, such as val_large.tar, or a directory of what was in it",
        settings={"has_classes": args.part == "train" or labels is not None},
    )
    source = plan.sources[0]
    if args.part == "train":
        records = partial(training_records, source)
    else:
        records = partial(validation_records, source, labels)
    total = sum(1 for _ in records()) if is_listed(source) else None
    if total is not None:
        check_count(total, plan)
    names = prepare(records(), out, plan, total=total, workers=args.workers)
    if args.part == "val":
        validation, test = (out / file for file in INPAINTING)
        write_split(names, (validation, test), divide_for_inpainting, lists=lists)


def training_records(source: Path) -> Iterator[Record]:
    """The images for training as `train/abbey/00000001.jpg`.

    In the archives they are `data_large/a/abbey/00000001.jpg`; of a scene of two parts, such as
    `data_large/a/apartment_building/outdoor/00000001.jpg`, one class `apartment_building-outdoor`
    is made, as classes are directories.
    """
    for member in members(source):
        *directories, file = member.name.split("/")
        roots = [i for i, each in enumerate(directories) if _TRAINING_ROOTS.fullmatch(each)]
        scene = directories[roots[0] + 1 :] if roots else directories
        if scene and file.lower().endswith(".jpg"):
            yield replace(member, name=f"train/{_class_name(scene)}/{file}")


def validation_records(source: Path, labels: Mapping[str, str] | None) -> Iterator[Record]:
    """The images for validation as `val/Places365_val_00000001.jpg`.

    labels: class of each file, which then lies in its directory; None for no classes.
    Raises ConfigError for a file that has no label.
    """
    for member in members(source):
        file = member.name.rpartition("/")[2]
        if not _VALIDATION.fullmatch(file):
            continue
        if labels is None:
            yield replace(member, name=f"val/{file}")
        elif file in labels:
            yield replace(member, name=f"val/{labels[file]}/{file}")
        else:
            raise ConfigError(f"--labels: {file} has no label; expected one of each image")


def read_labels(directory: Path) -> dict[str, str]:
    """File to class, of the owner's `places365_val.txt` and `categories_places365.txt`.

    Lines are `Places365_val_00000001.jpg 165` and `/a/airfield 0`.
    Raises ConfigError when one is missing or has other lines.
    """
    numbers = _table(directory / "places365_val.txt")
    names = {
        number: _class_name(category.strip("/").split("/"))
        for category, number in _table(directory / "categories_places365.txt").items()
    }
    unknown = sorted(set(numbers.values()) - names.keys())
    if unknown:
        raise ConfigError(
            f"--labels: the label {unknown[0]} of places365_val.txt is not in "
            "categories_places365.txt; expected both of one release"
        )
    return {file: names[number] for file, number in numbers.items()}


def divide_for_inpainting(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Images for validation and for test, chosen by hash: 2000 and 30000 of 36500.

    Of another number of images as large a share, and at least one of each.
    """
    shares = [max(1, round(len(names) * each / COUNTS["val"])) for each in INPAINTING.values()]
    shuffled = by_hash(names)
    return sorted(shuffled[: shares[0]]), sorted(shuffled[shares[0] : sum(shares)])


def _class_name(directories: Sequence[str]) -> str:
    """A scene's name from its directories, of which the first may be its initial letter."""
    begins_with_letter = len(directories) > 1 and len(directories[0]) == 1
    return "-".join(directories[1:] if begins_with_letter else directories)


def _table(path: Path) -> dict[str, str]:
    """A text file of two words to a line, the first to the second."""
    if not path.is_file():
        raise ConfigError(f"--labels: there is no {path}; expected the owner's lists in it")
    found = {}
    for number, line in enumerate(read_list(path), start=1):
        words = line.split()
        if len(words) != 2:
            raise ConfigError(f"{path}: line {number} is {line!r}; expected a name and a number")
        found[words[0]] = words[1]
    return found
