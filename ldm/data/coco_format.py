"""COCO's format (arXiv:1405.0312): one JSON file for many images, with boxes or with captions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm.config import ConfigError
from ldm.data.listing import utf8_text
from ldm.data.transforms import Window
from ldm.log import log

__all__ = [
    "MIN_AREA",
    "Coco",
    "CocoImage",
    "box_of",
    "captions_of",
    "coco_of",
    "in_window",
    "is_coco",
    "json_of",
    "tell_of_problems",
]

MIN_AREA = 1e-4  # share of the window that a box covers at least

_BOX_LISTS = ("images", "annotations", "categories")
_CAPTION_LISTS = ("images", "annotations")
_SLACK = 1.0  # pixels that a box may leave its image by: it is cut off there
_NAMED = 5  # problems that one message shows


@dataclass
class CocoImage:
    """An image of a file, and what is said about it.

    id: in the file.  name: of its file, empty where none is given.
    width, height: in pixels; 0 in a file of captions.
    names: of its objects' classes.  boxes: left, top, width and height of each, as fractions.
    captions: in the file's order.
    """

    id: int
    name: str
    width: int = 0
    height: int = 0
    names: list[str] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Coco:
    """What a file of boxes says.

    class_names: its categories in the order of their ids.  images: in the file's order.
    problems: annotations that are left out, and why.  faults: those of them that are mistakes of
    the file; the others are boxes without area, which COCO's own files have.
    """

    class_names: list[str]
    images: list[CocoImage]
    problems: list[str]
    faults: list[str]


class _NoAreaError(ValueError):
    """A box without area."""


def json_of(path: Path) -> Any:
    """What a JSON file holds; ConfigError names a file that holds none."""
    try:
        return json.loads(utf8_text(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is no JSON: {error}") from error


def is_coco(data: object) -> bool:
    """Whether the data of a JSON file has COCO's three lists."""
    return _has_lists(data, _BOX_LISTS)


def coco_of(path: Path, data: Any) -> Coco:
    """A file of boxes in COCO's format, from its data; annotations of crowds are left out.

    Raises ConfigError for data in another form, naming the entry and its value.
    """
    _require_lists(path, data, _BOX_LISTS)
    try:
        names = {_of(row, "id", int): _of(row, "name", str) for row in data["categories"]}
        images = {_of(row, "id", int): _sized_image(row) for row in data["images"]}
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    class_names = [names[key] for key in sorted(names)]
    if len(set(class_names)) < len(data["categories"]):
        raise ConfigError(f"{path}: two of its categories have one id or one name")
    _require_ids(path, data["images"], images)
    problems, faults = [], []
    for index, row in enumerate(data["annotations"]):
        try:
            _add_box(row, images, names)
        except ValueError as error:
            problems.append(f"annotation {index}: {error}")
            if not isinstance(error, _NoAreaError):
                faults.append(problems[-1])
    return Coco(class_names, list(images.values()), problems, faults)


def captions_of(path: Path, data: Any) -> list[CocoImage]:
    """The images of a file of captions in COCO's format, from its data, in the file's order.

    Captions are stripped, and empty ones left out.
    Raises ConfigError for data in another form, and for a caption whose image is not listed, naming
    the entry and its value.
    """
    _require_lists(path, data, _CAPTION_LISTS)
    try:
        images = {
            _of(row, "id", int): CocoImage(row["id"], _below(_of(row, "file_name", str)))
            for row in data["images"]
        }
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    _require_ids(path, data["images"], images)
    for index, row in enumerate(data["annotations"]):
        try:
            if isinstance(row, Mapping) and "caption" not in row and "bbox" in row:
                raise ValueError("has a bbox and no caption; expected a file of captions")
            text = _of(row, "caption", str).strip()
            image = images[_listed(row, "image_id", images)]
        except ValueError as error:
            raise ConfigError(f"{path}: annotation {index}: {error}") from error
        if text:
            image.captions.append(text)
    return list(images.values())


def _has_lists(data: object, keys: Sequence[str]) -> bool:
    return isinstance(data, Mapping) and all(isinstance(data.get(key), list) for key in keys)


def _require_lists(path: Path, data: Any, keys: Sequence[str]) -> None:
    """ConfigError says what the data has in place of COCO's lists."""
    if _has_lists(data, keys):
        return
    if isinstance(data, Mapping):
        missing = [key for key in keys if key not in data]
        found = f"an object of {', '.join(list(map(str, data))[:_NAMED]) or 'nothing'}"
        if not missing:
            wrong = next(key for key in keys if not isinstance(data[key], list))
            found = f"{wrong}: {str(data[wrong])[:40]}, which is no list"
    else:
        found = f"a list of {len(data)}" if isinstance(data, list) else f"{str(data)[:40]!r}"
    raise ConfigError(f"{path}: holds {found}; expected the lists {', '.join(keys)}, as COCO does")


def _require_ids(path: Path, rows: Sequence[Mapping[str, Any]], images: Mapping[int, Any]) -> None:
    """ConfigError says which id two images share."""
    if len(images) < len(rows):
        counts = Counter(row["id"] for row in rows)
        shared = next(id_ for id_ in counts if counts[id_] > 1)
        raise ConfigError(f"{path}: two of its images have the id {shared}")


def _of(row: Any, key: str, kind: type) -> Any:
    """An entry of a row; ValueError for another type."""
    value = row.get(key) if isinstance(row, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{str(row)[:80]}: {key} is {value!r}; expected of type {kind.__name__}")
    return value


def _listed(row: Any, key: str, known: Mapping[int, Any]) -> int:
    """An id of a row; ValueError for one that the file does not list."""
    value: int = _of(row, key, int)
    if value not in known:
        raise ValueError(f"{key} {value}; expected one of the {len(known)} that the file lists")
    return value


def _sized_image(row: Any) -> CocoImage:
    width, height = (_of(row, key, int) for key in ("width", "height"))
    if width < 1 or height < 1:
        raise ValueError(f"image {row['id']}: {width} x {height} pixels; expected at least 1 x 1")
    return CocoImage(row["id"], _below(str(row.get("file_name", ""))), width, height)


def _below(name: str) -> str:
    """A file's name; ValueError for one that leads out of the directory of images."""
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise ValueError(f"file_name {name!r}; expected a name below the directory of images")
    return name


def _add_box(row: Any, images: Mapping[int, CocoImage], names: Mapping[int, str]) -> None:
    """Add an annotation to its image; ValueError for a bad one."""
    image_id, category = _of(row, "image_id", int), _of(row, "category_id", int)
    image_id, category = _listed(row, "image_id", images), _listed(row, "category_id", names)
    if row.get("iscrowd"):
        return
    image, box = images[image_id], box_of(row.get("bbox"))
    image.boxes.append(_fractions(box, image))
    image.names.append(names[category])


def box_of(value: Any) -> list[float]:
    """Four numbers; ValueError for anything else."""
    is_box = isinstance(value, Sequence) and len(value) == 4
    if not is_box or not all(type(each) in (int, float) for each in value):
        raise ValueError(f"box {value!r}; expected four numbers: left, top, width, height")
    return [float(each) for each in value]


def _fractions(box: list[float], image: CocoImage) -> list[float]:
    """A box in pixels as fractions of its image, cut off where it leaves it by a pixel."""
    left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    # false for what is not a number
    is_inside = (
        min(left, top) >= -_SLACK
        and min(box[2], box[3]) >= 0
        and right <= image.width + _SLACK
        and bottom <= image.height + _SLACK
    )
    left, top = max(left, 0.0), max(top, 0.0)
    width, height = min(right, image.width) - left, min(bottom, image.height) - top
    if is_inside and width > 0 and height > 0:
        return [left / image.width, top / image.height, width / image.width, height / image.height]
    is_flat = is_inside or 0 in box[2:]
    raise (_NoAreaError if is_flat else ValueError)(
        f"box {box} in pixels; expected a width and a height of more than 0, inside of "
        f"{image.width} x {image.height}" + (f", the size of {image.name}" if image.name else "")
    )


def tell_of_problems(path: Path, coco: Coco) -> None:
    """Log how many annotations of a file are left out, and why the first of them are."""
    if coco.problems:
        shown = "; ".join(coco.problems[:_NAMED])
        log.warning("%s: %d annotations are left out: %s", path, len(coco.problems), shown)


def in_window(
    image: CocoImage, window: Window, min_area: float
) -> tuple[list[str], NDArray[np.float64]]:
    """Classes and boxes (N, 4) of an image in a window of its pixels, as fractions of that.

    min_area: share of the window that a box which is kept covers at least.
    """
    boxes = np.array(image.boxes, dtype=np.float64).reshape(-1, 4)
    sides = np.array([image.width, image.height], dtype=np.float64)
    start = np.array([window.left, window.top]) / sides
    share = np.array([window.width, window.height]) / sides
    first = ((boxes[:, :2] - start) / share).clip(0, 1)
    last = ((boxes[:, :2] + boxes[:, 2:] - start) / share).clip(0, 1)
    seen = np.concatenate([first, last - first], axis=1)
    kept = (seen[:, 2:] > 0).all(axis=1) & (seen[:, 2] * seen[:, 3] >= min_area)
    return [name for name, is_kept in zip(image.names, kept, strict=True) if is_kept], seen[kept]
