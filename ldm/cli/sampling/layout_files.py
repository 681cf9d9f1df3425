"""Layouts that a user writes: JSON files of objects, COCO's format, words of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ldm.cli.rundir import model_files
from ldm.config import (
    ConfigError,
    did_you_mean,
    instantiate_from_config,
    load,
    nearest_path,
    to_plain,
)
from ldm.data.coco_format import (
    MIN_AREA,
    box_of,
    coco_of,
    in_window,
    is_coco,
    json_of,
    tell_of_problems,
)
from ldm.data.layouts import require_layout
from ldm.data.transforms import Framing
from ldm.io.digest import sha256_of
from ldm.log import log

__all__ = ["Names", "boxes_of", "layout_items", "trained_names"]

Row = list[float]  # label, left, top, width, height
Names = Callable[[], Sequence[str]]

_FORMS = (
    'expected a list of objects, {"label": 3, "box": [left, top, width, height]} in fractions, or '
    "COCO's images, annotations and categories"
)


def trained_names(run: str, config: str | None) -> Names:
    """What looks up the class names of the data that a model was trained on, at most once.

    run, config: see `model_files`. Names are those of `data.params.train`; where there is none, or
    it is not there any more, which is told, none are known.
    """

    @cache
    def names() -> Sequence[str]:
        data = to_plain(load(model_files(run, config)[1]).get("data"))
        train = ((data or {}).get("params") or {}).get("train")
        if train is None:
            return ()
        try:
            found = instantiate_from_config(train, path="data.params.train")
        except (ConfigError, OSError) as error:
            log.warning("the names of this model's classes are not known: %s", error)
            return ()
        return list(getattr(found, "class_names", ()))

    return names


def layout_items(
    words: Sequence[str], names: Names, num_classes: int | None, framing: Framing
) -> list[dict[str, Any]]:
    """An item of each layout of the files, and directories of `.json` files, that words name.

    An item holds `layout`, rows of label, left, top, width and height, `source`, its file,
    `source_sha256`, and of COCO's format `image`, the name of its image there.
    num_classes: labels are below it.  framing: of the size that is drawn. Of images in COCO's
    format what is seen is what training sees, the largest window of these proportions in the
    centre; annotations that are none are left out, which is told.
    Raises ConfigError that names the file, the object and its value.
    """
    items = []
    for path in _files(words):
        data = json_of(path)
        source = {"source": str(path), "source_sha256": sha256_of(path)}
        if is_coco(data):
            for name, layout in _of_coco(path, data, names, num_classes, framing):
                items.append({"layout": layout, "image": name, **source})
        elif isinstance(data, list):
            items.append({"layout": _of_list(path, data, names, num_classes), **source})
        else:
            raise ConfigError(f"{path}: holds no layout; {_FORMS}")
    return items


def boxes_of(text: str, names: Names, num_classes: int | None) -> list[Row]:
    """The layout of `--boxes`: objects apart by semicolons, each its label and four fractions.

    Raises ConfigError that names the object and its value.
    """
    layout = []
    for index, words in enumerate(filter(None, map(str.strip, text.split(";")))):
        label, *numbers = words.rsplit(maxsplit=4)
        try:
            box = box_of([float(number) for number in numbers])
        except ValueError as error:
            raise ConfigError(
                f"--boxes: object {index}: {words!r}; expected LABEL LEFT TOP WIDTH HEIGHT"
            ) from error
        try:
            layout.append([_label(label, names), *box])
        except ValueError as error:
            raise ConfigError(f"--boxes: object {index}: {error}") from error
    return _checked("--boxes", layout, num_classes)


def _files(words: Sequence[str]) -> Iterator[Path]:
    for word in words:
        path = Path(word).expanduser()
        if path.is_dir():
            found = sorted(path.rglob("*.json"))
            if not found:
                raise ConfigError(f"{path}: holds no layouts; expected files ending in .json")
            yield from found
        elif path.is_file():
            yield path
        else:
            near = nearest_path(path.absolute())
            hint = f"; did you mean {near}?" if near else ""
            raise ConfigError(f"{path}: there is no such file or directory{hint}")


def _of_list(path: Path, data: list[Any], names: Names, num_classes: int | None) -> list[Row]:
    layout = []
    for index, each in enumerate(data):
        if not isinstance(each, dict) or each.keys() != {"label", "box"}:
            raise ConfigError(f"{path}: object {index} is {str(each)[:80]}; {_FORMS}")
        try:
            layout.append([_label(each["label"], names), *box_of(each["box"])])
        except ValueError as error:
            raise ConfigError(f"{path}: object {index}: {error}") from error
    return _checked(str(path), layout, num_classes)


def _of_coco(
    path: Path, data: Any, names: Names, num_classes: int | None, framing: Framing
) -> Iterator[tuple[str, list[Row]]]:
    """The name and the layout of each image; those without objects are left out, which is told."""
    coco = coco_of(path, data)
    tell_of_problems(path, coco)
    known = names()
    if not known:
        known = coco.class_names
        log.info("%s: labels count its categories in the order of their ids", path)
    seen = []
    for each in coco.images:
        window = framing.window(each.height, each.width)
        seen.append((each.name, *in_window(each, window, MIN_AREA)))
    filled = [(image, classes, boxes) for image, classes, boxes in seen if classes]
    if len(filled) < len(seen):
        count = len(seen) - len(filled)
        log.info("%s: %d images without objects are left out", path, count)
    for image, classes, boxes in filled:
        try:
            labels = [_place(name, known) for name in classes]
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from error
        rows = [[label, *box] for label, box in zip(labels, boxes.tolist(), strict=True)]
        yield image, _checked(str(path), rows, num_classes)


def _label(value: Any, names: Names) -> int:
    """The label of a class by its number or its name; ValueError for neither."""
    if type(value) is int:
        return value
    if not isinstance(value, str):
        raise ValueError(f"label {value!r}; expected a whole number, or the name of a class")
    if value.isdecimal():
        return int(value)
    known = names()
    if not known:
        raise ValueError(
            f"label {value!r}: the names of this model's classes are not known; give numbers"
        )
    return _place(value, known)


def _place(value: str, known: Sequence[str]) -> int:
    """The label of a class by its name; ValueError for a name that is not known."""
    if value not in known:
        raise ValueError(
            f"label {value!r} is none of the {len(known)} classes{did_you_mean(value, known)}"
        )
    return known.index(value)


def _checked(source: str, layout: list[Row], num_classes: int | None) -> list[Row]:
    if not layout:
        raise ConfigError(f"{source}: holds no objects")
    try:
        require_layout(layout, num_classes)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error
    return layout
