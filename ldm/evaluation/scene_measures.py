"""How well pictures of drawn scenes show what was asked for, measured from their pixels alone.

Each measure takes pictures, (H, W, 3) uint8 each, and the items of `ldm.data.shapes.ShapesDataset`
that they were asked by, and returns figures between 0 and 1 by name (decibels where it says so).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm.data.drawing import Placed
from ldm.data.scenes import BACKGROUNDS, CLASS_NAMES, COLOURS
from ldm.data.shapes_verifier import Seen, SeenThing, read_scene, score

__all__ = ["agreement", "classes", "colours", "layouts", "overlap", "peak_signal", "scenes"]

Images = Sequence[NDArray[np.uint8]]
Items = Sequence[Mapping[str, Any]]
Box = tuple[float, float, float, float]


def scenes(images: Images, items: Items) -> dict[str, float]:
    """Share of pictures that are scenes: plain, with things that are all of ours."""
    return {"scenes": float(np.mean([read_scene(image) is not None for image in images]))}


def classes(images: Images, items: Items) -> dict[str, float]:
    """Share of pictures with one thing, which is of the class asked for."""
    labels = [_only_label(read_scene(image)) for image in images]
    right = [got == item["class_label"] for got, item in zip(labels, items, strict=True)]
    return {"class": float(np.mean(right))}


def agreement(images: Images, items: Items) -> dict[str, float]:
    """Share of pictures that show all of their captions, and of each attribute."""
    report = score(list(images), [item["caption"] for item in items])
    return {"caption": report.accuracy, **report.attributes}


def layouts(images: Images, items: Items) -> dict[str, float]:
    """Mean overlap of the boxes asked for with the drawn ones, and share of them of their class.

    Things are assigned to boxes so that the overlaps add up to most. A box without a thing has
    overlap 0 and no class, and so has each of a picture that is no scene.
    """
    overlaps, right = [], []
    for image, item in zip(images, items, strict=True):
        for best, is_class in _assigned(read_scene(image), item["boxes"], item["box_classes"]):
            overlaps.append(best)
            right.append(is_class)
    return {"box IoU": float(np.mean(overlaps)), "box class": float(np.mean(right))}


def colours(images: Images, items: Items) -> dict[str, float]:
    """Share of pixels whose colour is one that their label allows, of all and of things alone.

    A label says the colour of a thing; the background may have any of its colours. A pixel has the
    colour that is nearest.
    """
    names = list(COLOURS)
    palette = np.array([*COLOURS.values(), *BACKGROUNDS.values()], dtype=np.float64)
    asked_of = np.array([-1, *(names.index(name.split()[0]) for name in CLASS_NAMES)])
    right, on_things = [], []
    for image, item in zip(images, items, strict=True):
        apart = np.linalg.norm(image[..., None, :] - palette, axis=-1)
        nearest = apart.argmin(axis=-1)
        drawn = np.where(nearest < len(names), nearest, -1)
        asked = asked_of[item["segmentation"]]
        right.append((drawn == asked).mean())
        on_things.append((drawn == asked)[asked >= 0])
    return {"pixels": float(np.mean(right)), "of things": float(np.concatenate(on_things).mean())}


def peak_signal(images: Images, items: Items) -> dict[str, float]:
    """Mean over pictures of the peak signal-to-noise ratio against the item's image, in dB."""
    pairs = zip(images, items, strict=True)
    squares = [np.mean((a.astype(np.float64) - b["image"]) ** 2) for a, b in pairs]
    # no error at all is taken for one of a hundredth of a level, which is 88 dB
    return {"PSNR": float(np.mean(10 * np.log10(255**2 / np.maximum(squares, 1e-4))))}


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes: left, top, width, height."""
    sides = [
        min(one[i] + one[i + 2], other[i] + other[i + 2]) - max(one[i], other[i]) for i in (0, 1)
    ]
    common = max(sides[0], 0) * max(sides[1], 0)
    return common / (one[2] * one[3] + other[2] * other[3] - common)


def _only_label(seen: Seen | None) -> int | None:
    if seen is None or len(seen.things) != 1:
        return None
    return seen.things[0].thing.class_label


def _assigned(seen: Seen | None, boxes: Any, labels: Any) -> list[tuple[float, bool]]:
    """Overlap of each box asked for, and whether its thing is of its class."""
    things: list[SeenThing | None] = [] if seen is None else list(seen.things)
    things += [None] * (len(boxes) - len(things))
    aspect = 1.0 if seen is None else seen.aspect

    def judged(order: Sequence[SeenThing | None]) -> list[tuple[float, bool]]:
        return [
            (0.0, False)
            if thing is None
            else (overlap(_box(thing, aspect), asked), thing.thing.class_label == label)
            for thing, asked, label in zip(order, boxes, labels, strict=True)
        ]

    orders = (judged(order) for order in itertools.permutations(things, len(boxes)))
    return max(orders, key=lambda found: sum(each for each, _ in found))


def _box(seen: SeenThing, aspect: float) -> Box:
    """The box of a thing as fractions of the picture's sides."""
    width, height = (aspect, 1.0) if aspect > 1 else (1.0, 1 / aspect)
    placed = Placed(seen.thing, seen.x * width, seen.y * height, seen.radius)
    left, top, across, down = placed.box
    return left / width, top / height, across / width, down / height
