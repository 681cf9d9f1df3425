"""Boxes in COCO's format (arXiv:1405.0312): one JSON file for many images, boxes in pixels."""

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
from ldm.data.images import ImageFiles
from ldm.data.listing import existing_directory, utf8_text
from ldm.data.transforms import Framing
from ldm.log import log
from ldm.ranges import NonNegative, Weight

__all__ = [
    "MIN_AREA",
    "Coco",
    "CocoBoxes",
    "CocoImage",
    "box_of",
    "coco_of",
    "in_window",
    "is_coco",
    "json_of",
    "tell_of_problems",
]

MIN_AREA = 1e-4  # share of the window that a box covers at least

_KEYS = ("images", "annotations", "categories")
_SLACK = 1.0  # pixels that a box may leave its image by: it is cut off there
_NAMED = 5  # problems that one message shows


@dataclass
class CocoImage:
    """An image of a file, and what is in it.

    name: of its file, empty where none is given.  width, height: in pixels.
    names: of its objects' classes.  boxes: left, top, width and height of each, as fractions.
    """

    name: str
    width: float
    height: float
    names: list[str] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class Coco:
    """What a file in COCO's format says.

    class_names: its categories in the order of their ids.  images: in the file's order.
    problems: annotations that are left out, and why: boxes without area or outside their image.
    """

    class_names: list[str]
    images: list[CocoImage]
    problems: list[str]


def json_of(path: Path) -> Any:
    """What a JSON file holds; ConfigError names a file that holds none."""
    try:
        return json.loads(utf8_text(path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: is no JSON: {error}") from error


def is_coco(data: object) -> bool:
    """Whether the data of a JSON file has COCO's three lists."""
    return isinstance(data, Mapping) and all(isinstance(data.get(key), list) for key in _KEYS)


def coco_of(path: Path, data: Any) -> Coco:
    """A file in COCO's format, from its data; annotations of crowds are left out.

    Raises ConfigError for data in another form, naming the entry and its value.
    """
    if not is_coco(data):
        raise ConfigError(f"{path}: expected the lists {', '.join(_KEYS)}, as COCO has them")
    try:
        names = {_of(row, "id", int): _of(row, "name", str) for row in data["categories"]}
        images = {_of(row, "id", int): _image(row) for row in data["images"]}
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    class_names = [names[key] for key in sorted(names)]
    if len(set(class_names)) < len(data["categories"]):
        raise ConfigError(f"{path}: two of its categories have one id or one name")
    if len(images) < len(data["images"]):
        raise ConfigError(f"{path}: {_repeated(data['images'])}")
    problems = []
    for index, row in enumerate(data["annotations"]):
        try:
            _add(row, images, names)
        except ValueError as error:
            problems.append(f"annotation {index}: {error}")
    return Coco(class_names, list(images.values()), problems)


def _repeated(rows: Sequence[Mapping[str, Any]]) -> str:
    """Which id two images share."""
    counts = Counter(row["id"] for row in rows)
    return f"two of its images have the id {next(id_ for id_ in counts if counts[id_] > 1)}"


def _of(row: Any, key: str, kind: type) -> Any:
    """An entry of a row; ValueError for another type."""
    value = row.get(key) if isinstance(row, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{str(row)[:80]}: {key} is {value!r}; expected of type {kind.__name__}")
    return value


def _image(row: Any) -> CocoImage:
    width, height = (_of(row, key, int) for key in ("width", "height"))
    if width < 1 or height < 1:
        raise ValueError(f"image {row['id']}: {width} x {height} pixels; expected at least 1 x 1")
    return CocoImage(str(row.get("file_name", "")), width, height)


def _add(row: Any, images: Mapping[int, CocoImage], names: Mapping[int, str]) -> None:
    """Add an annotation to its image; ValueError for a bad one."""
    image_id, category = (_of(row, key, int) for key in ("image_id", "category_id"))
    for key, value, known in (("image_id", image_id, images), ("category_id", category, names)):
        if value not in known:
            raise ValueError(f"{key} {value}; expected one of the {len(known)} that the file lists")
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
    is_inside = (
        min(left, top) >= -_SLACK
        and right <= image.width + _SLACK
        and bottom <= image.height + _SLACK
    )
    left, top = max(left, 0.0), max(top, 0.0)
    width, height = min(right, image.width) - left, min(bottom, image.height) - top
    if not (is_inside and width > 0 and height > 0):
        raise ValueError(
            f"box {box} in pixels; expected a width and a height of more than 0, inside of "
            f"{image.width} x {image.height}"
        )
    return [left / image.width, top / image.height, width / image.width, height / image.height]


class CocoBoxes(ImageFiles):
    """Images of a directory, with the boxes of a file in COCO's format.

    root: the directory.  annotations: the file, `instances_train2017.json` or the like, which is
        one split by itself.
    size: side of the images in pixels, or [height, width]: the largest window of these proportions
        in the centre is cut out and resized, and the boxes with it.
    flip_p: probability of a mirrored image, with its boxes.
    min_area: boxes that cover less of the window than this share are left out.
    min_objects: images with fewer boxes are left out.

    An item holds `image` (H, W, 3) uint8, `relpath`, `boxes` (N, 4) float32 and `box_classes` (N,)
    int64, labels that count `class_names`, the file's categories in the order of their ids.
    Annotations of crowds are left out; so are boxes that are none, which is told. An image of
    another size, upright, than the file says it has is bad: named, and replaced by its neighbour.

    Raises ConfigError when directory or file is missing, or no image is left.
    """

    def __init__(
        self,
        root: str | Path,
        annotations: str | Path,
        size: int | Sequence[int] = 256,
        *,
        flip_p: float = 0.0,
        min_area: Weight = MIN_AREA,
        min_objects: NonNegative = 1,
    ) -> None:
        framing = Framing.of(size)
        if not 0 <= flip_p <= 1:
            raise ConfigError(f"flip_p: {flip_p}; expected a probability, 0 to 1")
        directory = existing_directory(root, expected="a directory of images")
        path = Path(annotations).expanduser()
        if not path.is_file():
            raise ConfigError(f"annotations: there is no file {path}; expected COCO's JSON")
        coco = coco_of(path, json_of(path))
        tell_of_problems(path, coco)
        self.flip_p = flip_p
        self._objects: list[tuple[list[str], NDArray[np.float64]]] = []
        names = []
        for image in coco.images:
            kept, boxes = in_window(image, framing, min_area)
            if len(kept) >= min_objects:
                names.append(image.name)
                self._objects.append((kept, boxes))
        if not names:
            raise ConfigError(
                f"annotations: {path}: none of its {len(coco.images)} images has {min_objects} "
                "objects or more (min_objects)"
            )
        self.class_names = coco.class_names
        log.info("%s: %d of %d images", path, len(names), len(coco.images))
        self._sides = {image.name: (image.height, image.width) for image in coco.images}
        super().__init__(directory, names, framing)

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The sample at `index`, or the next one that can be read, mirrored or not."""
        item = super().item(index, rng)
        if rng.random() < self.flip_p:
            left, top, width, height = item["boxes"].T
            item["boxes"] = np.stack([1 - left - width, top, width, height], axis=1)
            item["image"] = np.ascontiguousarray(item["image"][:, ::-1])
        return item

    def facts(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Boxes and their classes."""
        names, boxes = self._objects[index]
        labels = [self.class_names.index(name) for name in names]
        return {
            "boxes": boxes.astype(np.float32),
            "box_classes": np.array(labels, dtype=np.int64),
        }

    def _pixels(self, name: str) -> NDArray[Any] | str:
        """An image's pixels, or what is wrong with it: its boxes are those of another one."""
        pixels = super()._pixels(name)
        if isinstance(pixels, str) or pixels.shape[:2] == self._sides[name]:
            return pixels
        told, found = (f"{high} x {wide}" for high, wide in (self._sides[name], pixels.shape[:2]))
        return f"its boxes are of an image of {told} pixels, it has {found}"


def tell_of_problems(path: Path, coco: Coco) -> None:
    """Log how many annotations of a file are left out, and why the first of them are."""
    if coco.problems:
        shown = "; ".join(coco.problems[:_NAMED])
        log.warning("%s: %d annotations are left out: %s", path, len(coco.problems), shown)


def in_window(
    image: CocoImage, framing: Framing, min_area: float
) -> tuple[list[str], NDArray[np.float64]]:
    """Classes and boxes (N, 4) of an image in the window of a framing, as fractions of that.

    The window is the largest of the framing's proportions in the centre.
    min_area: share of it that a box which is kept covers at least.
    """
    boxes = np.array(image.boxes, dtype=np.float64).reshape(-1, 4)
    scale = min(image.height / framing.height, image.width / framing.width)
    share = np.array([framing.width * scale / image.width, framing.height * scale / image.height])
    start = (1 - share) / 2
    first = ((boxes[:, :2] - start) / share).clip(0, 1)
    last = ((boxes[:, :2] + boxes[:, 2:] - start) / share).clip(0, 1)
    seen = np.concatenate([first, last - first], axis=1)
    kept = (seen[:, 2:] > 0).all(axis=1) & (seen[:, 2] * seen[:, 3] >= min_area)
    return [name for name, is_kept in zip(image.names, kept, strict=True) if is_kept], seen[kept]
