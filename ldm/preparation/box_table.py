"""The tables of Open Images (arXiv:1811.00982): boxes, and names of classes.

The table of boxes has millions of rows, an image's one after the other. It is read as a stream:
what stays in memory is 64 bits of the name of each image, never a box.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from ldm.config import ConfigError
from ldm.data.listing import utf8_text
from ldm.hashing import hash64

__all__ = ["Row", "boxes_of_images", "class_descriptions"]

_COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf", "IsDepiction")


@dataclass(frozen=True)
class Row:
    """A row of the table: a box in fractions of its image.

    is_group: one box around more than five things of a class that touch each other.
    is_depiction: a drawing or another picture of the thing.
    """

    image: str
    label: str
    left: float
    right: float
    top: float
    bottom: float
    is_group: bool
    is_depiction: bool


def class_descriptions(path: Path) -> dict[str, str]:
    """Labels and their names, in the order of `class-descriptions-boxable.csv`.

    Two labels of one name are told apart by their label.
    Raises ConfigError for a line that is no pair, or a label that is there twice.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for number, row in enumerate(csv.reader(utf8_text(path).splitlines()), start=1):
        if row == ["LabelName", "DisplayName"] and number == 1:
            continue
        if len(row) != 2 or not all(row):
            raise ConfigError(f"{path}: line {number}: {row}; expected a label and a name")
        label, name = row
        if label in names:
            raise ConfigError(f"{path}: line {number}: the label {label} is there twice")
        names[label] = f"{name} ({label})" if name in taken else name
        taken.add(name)
    if not names:
        raise ConfigError(f"{path}: is empty; expected lines such as /m/011k07,Tortoise")
    return names


def boxes_of_images(
    path: Path, told: Callable[[int], object] = lambda size: None
) -> Iterator[tuple[str, list[Row]]]:
    """The images of the table, each with all of its boxes.

    told: is called with the bytes that were read, for a progress bar.
    Raises ConfigError for a missing column, a value that is none, and an image whose rows do not
    stand together.
    """
    seen: set[int] = set()
    for image, rows in groupby(_rows(path, told), key=lambda row: row.image):
        # 64 bits instead of names: there are millions, and two of one hash are not to be expected
        key = hash64(image.encode())
        if key in seen:
            raise ConfigError(
                f"{path}: the rows of the image {image} do not stand together; sort them by ImageID"
            )
        seen.add(key)
        yield image, list(rows)


def _rows(path: Path, told: Callable[[int], object]) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(_counted(file, told))
        header = next(reader, [])
        lacking = [name for name in _COLUMNS if name not in header]
        if lacking:
            raise ConfigError(
                f"{path}: has no column {', '.join(lacking)}; expected the table of boxes of Open "
                f"Images, its first line has {', '.join(header)[:120] or 'nothing'}"
            )
        places = [header.index(name) for name in _COLUMNS]
        for values in reader:
            try:
                image, label, *numbers, group, depiction = [values[place] for place in places]
                left, right, top, bottom = map(float, numbers)
            except (IndexError, ValueError):
                raise ConfigError(
                    f"{path}: line {reader.line_num}: {','.join(values)[:120]!r}; expected "
                    f"{len(header)} values, numbers for XMin, XMax, YMin and YMax"
                ) from None
            # -1 says that nobody looked
            yield Row(image, label, left, right, top, bottom, group == "1", depiction == "1")


def _counted(lines: Iterable[str], told: Callable[[int], object]) -> Iterator[str]:
    for line in lines:
        told(len(line))
        yield line
