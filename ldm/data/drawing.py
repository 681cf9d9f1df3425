"""Scenes as pictures: where things go, and their anti-aliased shapes.

Lengths are in pixels unless a name says otherwise; x runs to the right and y downwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ldm.data.scenes import BACKGROUNDS, COLOURS, PLACES, RELATIONS, SIZES, Scene, Thing

__all__ = ["CENTROID", "PLACE_CENTRES", "RADII", "Placed", "coverage", "draw", "lay_out"]

Floats = NDArray[np.float64]

# radius of each size as a fraction of the short side of the picture, by the number of things
RADII = {
    1: {"small": 0.105, "large": 0.2},
    2: {"small": 0.09, "large": 0.15},
    3: {"small": 0.075, "large": 0.115},
}

# middle of each column and row of places, as a fraction of the width or height
PLACE_CENTRES = (0.27, 0.5, 0.73)

_SIZE_JITTER = 0.05  # relative
_PLACE_JITTER = 0.02  # of the width or height
_MARGIN = 0.025  # of the short side, kept clear around the picture
_GAP = 0.055  # of the short side, kept clear between things
_DOMINANCE = 1.5  # a relation's axis exceeds the other by this factor

_SUBSAMPLES = 4  # per pixel and axis
_ROUNDED = 0.88  # a square of this half side looks as large as the circle of radius 1
_TRIANGLE = 1.25  # circumscribed radius of the equilateral triangle, which is 1.5 times as high
_ARM = 0.36  # half the thickness of the cross

# inside the shape of radius 1 whose bounding box is centred on the origin
_INSIDE: dict[str, Callable[[Floats, Floats], NDArray[np.bool_]]] = {
    "circle": lambda u, v: u**2 + v**2 <= 1,
    "square": lambda u, v: (np.abs(u) <= _ROUNDED) & (np.abs(v) <= _ROUNDED),
    "triangle": lambda u, v: (v <= 0.75 * _TRIANGLE) & (3**0.5 * np.abs(u) <= v + 0.75 * _TRIANGLE),
    "cross": lambda u, v: (
        (np.minimum(np.abs(u), np.abs(v)) <= _ARM) & (np.maximum(np.abs(u), np.abs(v)) <= 1)
    ),
}

# half width and half height of the bounding box, in radii
_EXTENT = {
    "circle": (1.0, 1.0),
    "square": (_ROUNDED, _ROUNDED),
    "triangle": (_TRIANGLE * 3**0.5 / 2, 0.75 * _TRIANGLE),
    "cross": (1.0, 1.0),
}

# height of the centre of mass below the middle of the bounding box, in radii
CENTROID = {"circle": 0.0, "square": 0.0, "triangle": 0.25 * _TRIANGLE, "cross": 0.0}


@dataclass(frozen=True)
class Placed:
    """A thing in a picture: middle (x, y) of its bounding box and its radius, in pixels."""

    thing: Thing
    x: float
    y: float
    radius: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, width and height of the bounding box, in pixels."""
        half_width, half_height = (self.radius * extent for extent in _EXTENT[self.thing.shape])
        return self.x - half_width, self.y - half_height, 2 * half_width, 2 * half_height


def lay_out(scene: Scene, height: int, width: int, rng: np.random.Generator) -> list[Placed]:
    """Sizes and positions for a scene; whatever its caption leaves unsaid is drawn from `rng`."""
    short = min(height, width)
    radii = RADII[len(scene.things)]
    sizes = [thing.size or str(rng.choice(SIZES)) for thing in scene.things]
    scales = rng.uniform(1 - _SIZE_JITTER, 1 + _SIZE_JITTER, len(sizes))
    radius = np.array([radii[size] for size in sizes]) * scales
    if len(scene.things) == 1:
        column, row = PLACES[scene.place or str(rng.choice(list(PLACES)))]
        jitter = rng.uniform(-_PLACE_JITTER, _PLACE_JITTER, 2)
        position = np.array([[PLACE_CENTRES[column], PLACE_CENTRES[row]]]) + jitter
        position *= np.array([width, height]) / short
    else:
        position = _related_positions(scene, radius, np.array([width, height]) / short, rng)
    return [
        Placed(thing, x * short, y * short, r * short)
        for thing, (x, y), r in zip(scene.things, position.tolist(), radius.tolist(), strict=True)
    ]


def _related_positions(
    scene: Scene, radius: Floats, frame: Floats, rng: np.random.Generator
) -> Floats:
    """Positions (N, 2) that satisfy a scene's relations, by rejection; unit: the short side."""
    extent = radius[:, None] * np.array([_EXTENT[thing.shape] for thing in scene.things])
    low, high = _MARGIN + extent, frame - _MARGIN - extent
    while True:
        tries = rng.uniform(low, high, (4096, *extent.shape))
        good = np.ones(len(tries), dtype=bool)
        for i, j in itertools.combinations(range(len(extent)), 2):
            distance = np.abs(tries[:, i] - tries[:, j]) - extent[i] - extent[j]
            good &= distance.max(axis=1) >= _GAP
        for j, relation in enumerate(scene.relations, start=1):
            direction = np.array(RELATIONS[relation])
            offset = tries[:, 0] - tries[:, j]
            across = np.abs(offset @ direction[::-1])
            good &= offset @ direction >= np.maximum(_DOMINANCE * across, _GAP)
        if good.any():
            return np.asarray(tries[good.argmax()])


def coverage(shape: str, height: int, width: int, x: float, y: float, radius: float) -> Floats:
    """Fraction of each pixel (height, width) that a shape covers, in 0..1.

    x, y: middle of the bounding box.  Only the pixels near the shape are evaluated.
    """
    rows, v = _near(y, radius, height)
    columns, u = _near(x, radius, width)
    inside = _INSIDE[shape](u[None, :, None, :], v[:, None, :, None])
    covered = np.zeros((height, width))
    covered[rows, columns] = inside.mean(axis=(2, 3))
    return covered


def _near(middle: float, radius: float, side: int) -> tuple[slice, Floats]:
    """Pixels of an axis that a shape may reach, and the points sampled in each, in radii (N, 4)."""
    reach = 1.1 * radius
    start, stop = (min(max(0, int(edge)), side) for edge in (middle - reach, middle + reach + 1))
    points = np.arange(start, stop)[:, None] + (np.arange(_SUBSAMPLES) + 0.5) / _SUBSAMPLES
    return slice(start, stop), (points - middle) / radius


def draw(
    background: str, placed: list[Placed], height: int, width: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A picture (height, width, 3) uint8 and its segmentation (height, width).

    The segmentation is 0 on the background and 1 + class label on a thing.
    """
    picture = np.full((height, width, 3), BACKGROUNDS[background], dtype=np.float64)
    segmentation = np.zeros((height, width), dtype=np.int64)
    for each in placed:
        covered = coverage(each.thing.shape, height, width, each.x, each.y, each.radius)
        colour = np.array(COLOURS[each.thing.colour])
        picture += covered[..., None] * (colour - picture)
        segmentation[covered >= 0.5] = 1 + each.thing.class_label
    return picture.round().astype(np.uint8), segmentation
