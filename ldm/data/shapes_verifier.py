"""Reads a picture back into a scene without any network, and scores pictures against captions.

Background from the border, things as connected regions that differ from it, colour as the line in
RGB from the background on which a region's pixels lie, shape and size by comparison with drawn
templates. Blur, noise and slight colour shifts of a generated picture do not matter; a picture
that is not clearly a scene reads as none.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm.data.drawing import CENTROID, PLACE_CENTRES, RADII, coverage
from ldm.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    parse,
)

__all__ = ["Report", "Seen", "SeenThing", "read_scene", "score", "verdict"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

ATTRIBUTES = ("count", "shape", "colour", "size", "place", "relation", "background")

# larger pictures are averaged down to about this short side first, for speed
_WORKING_SIDE = 64
# RGB distance from the background beyond which a pixel belongs to a thing; colours are >= 121 away
_FOREGROUND = 48.0
# fraction of the border that must agree on a background, and how far from its colour it may be
_BORDER_AGREEMENT = 0.7
_BACKGROUND_TOLERANCE = 45.0
# cosine between a thing's mean offset from the background and its colour's, below which it is none
# of ours; the colours most alike beside a background (orange and yellow on black) have 0.97
_COLOUR_COSINE = 0.96
# how pixels are projected onto the line from background to colour: luma counts more, for chroma is
# what compression and autoencoders blur first
_LUMA = np.array([0.299, 0.587, 0.114]) / np.linalg.norm([0.299, 0.587, 0.114])
_METRIC = np.eye(3) + 10 * np.outer(_LUMA, _LUMA)
# strengths of blur a thing is compared at: none and steps of 0.5 square pixels
_BLURS = 4
# overlap (intersection over union of coverages) with the best template below which it is no shape
_SHAPE_OVERLAP = 0.75
# regions smaller than this fraction of the smallest thing are specks, not things
_SPECK = 0.3
_AREA = {shape: float(coverage(shape, 96, 96, 48, 48, 32).sum()) / 32**2 for shape in SHAPES}


@dataclass(frozen=True)
class SeenThing:
    """A thing read from a picture.

    thing: shape, colour and size.  x, y: its middle as fractions of the picture's width and
    height.  radius: as a fraction of the short side.
    """

    thing: Thing
    x: float
    y: float
    radius: float

    @property
    def place(self) -> str:
        """The place, of nine, that its middle is nearest to."""
        column, row = (
            int(np.abs(np.array(PLACE_CENTRES) - middle).argmin()) for middle in (self.x, self.y)
        )
        return next(place for place, where in PLACES.items() if where == (column, row))


@dataclass(frozen=True)
class Seen:
    """What a picture shows: a background, and things in no particular order."""

    background: str
    things: tuple[SeenThing, ...]
    aspect: float  # width over height


@dataclass(frozen=True)
class Report:
    """How well pictures show what their captions say.

    accuracy: fraction with every attribute right.  attributes: the fraction right of each, among
    the pictures whose caption says something about it; a picture that cannot be read has none.
    """

    accuracy: float
    attributes: dict[str, float]
    count: int


def read_scene(image: NDArray[np.uint8]) -> Seen | None:
    """What a picture (H, W, 3) uint8 shows, or None when it is not clearly a drawn scene."""
    pixels = _reduced(image).astype(np.float64)
    background = _background(pixels)
    if background is None:
        return None
    name, level = background
    foreground = np.linalg.norm(pixels - level, axis=2) > _FOREGROUND
    short = min(foreground.shape)
    smallest = min(_AREA.values()) * (RADII[3]["small"] * short) ** 2
    regions = [each for each in _regions(foreground) if each.sum() >= _SPECK * smallest]
    if not 1 <= len(regions) <= max(RADII):
        return None
    taken = np.logical_or.reduce(regions)
    things = []
    for region in regions:
        seen = _thing(pixels, level, _grown(region) & ~(taken & ~region), len(regions))
        if seen is None:
            return None
        things.append(seen)
    return Seen(name, tuple(things), image.shape[1] / image.shape[0])


def verdict(image: NDArray[np.uint8], text: str) -> dict[str, bool]:
    """Which attributes of a caption a picture (H, W, 3) uint8 shows.

    Only what the caption says is judged: `place` and `relation` are absent where it says nothing.
    All are False for a picture that cannot be read.  Raises ValueError for a foreign caption.
    """
    wanted, seen = parse(text), read_scene(image)
    told = {
        "size": any(thing.size for thing in wanted.things),
        "place": wanted.place is not None,
        "relation": bool(wanted.relations),
    }
    judged = [name for name in ATTRIBUTES if told.get(name, True)]
    if seen is None:
        return dict.fromkeys(judged, False)
    if len(seen.things) != len(wanted.things):
        right = {"background": seen.background == wanted.background}
        return {name: right.get(name, False) for name in judged}
    orders = itertools.permutations(seen.things)
    results = [_compared(wanted, seen, order) for order in orders]
    best = max(results, key=lambda right: sum(right[name] for name in judged))
    return {name: best[name] for name in judged}


def score(
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], captions: Sequence[str]
) -> Report:
    """How well pictures (N, H, W, 3) uint8 show what their captions (N) say."""
    if len(images) != len(captions) or not len(captions):
        raise ValueError(f"{len(images)} pictures for {len(captions)} captions")
    verdicts = [verdict(image, text) for image, text in zip(images, captions, strict=True)]
    judged = {name: [v[name] for v in verdicts if name in v] for name in ATTRIBUTES}
    return Report(
        accuracy=float(np.mean([all(v.values()) for v in verdicts])),
        attributes={name: float(np.mean(values)) for name, values in judged.items() if values},
        count=len(verdicts),
    )


def _compared(wanted: Scene, seen: Seen, order: tuple[SeenThing, ...]) -> dict[str, bool]:
    """Each attribute of a scene when the things seen are taken in this order."""
    pairs = [(want, got.thing) for want, got in zip(wanted.things, order, strict=True)]
    directions = zip(wanted.relations, order[1:], strict=True)
    return {
        "count": True,
        "shape": all(want.shape == got.shape for want, got in pairs),
        "colour": all(want.colour == got.colour for want, got in pairs),
        "size": all(want.size in (None, got.size) for want, got in pairs),
        "place": wanted.place in (None, order[0].place),
        "relation": all(
            _relation(order[0], other, seen.aspect) == relation for relation, other in directions
        ),
        "background": wanted.background == seen.background,
    }


def _relation(first: SeenThing, other: SeenThing, aspect: float) -> str:
    offset = np.array([(first.x - other.x) * aspect, first.y - other.y])
    return max(RELATIONS, key=lambda relation: float(offset @ np.array(RELATIONS[relation])))


def _reduced(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"a picture of {image.dtype} {image.shape}; expected uint8 (H, W, 3)")
    factor = min(image.shape[:2]) // _WORKING_SIDE
    return np.asarray(Image.fromarray(image).reduce(factor)) if factor > 1 else image


def _background(pixels: Floats) -> tuple[str, Floats] | None:
    """Name and level of the background, or None when the border does not agree on one."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    palette = np.array(list(BACKGROUNDS.values()), dtype=np.float64)
    distance = np.linalg.norm(border[:, None] - palette, axis=2)
    nearest = distance.argmin(axis=1)
    mode = int(np.bincount(nearest, minlength=len(palette)).argmax())
    agrees = (nearest == mode) & (distance[:, mode] < _BACKGROUND_TOLERANCE)
    if agrees.mean() < _BORDER_AGREEMENT:
        return None
    return list(BACKGROUNDS)[mode], np.asarray(np.median(border[agrees], axis=0))


def _regions(mask: Mask) -> list[Mask]:
    """The 4-connected regions of a mask, each as a mask."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        # every pixel takes the largest label among itself and its neighbours, until none changes
        spread = np.where(mask, _with_neighbours(labels), 0)
        if (spread == labels).all():
            return [labels == label for label in np.unique(labels[mask])]
        labels = spread


def _with_neighbours(values: NDArray[Any]) -> NDArray[Any]:
    """The largest value among each pixel and its four neighbours."""
    result = values.copy()
    for into, other in (
        (np.s_[1:], np.s_[:-1]),
        (np.s_[:-1], np.s_[1:]),
        (np.s_[:, 1:], np.s_[:, :-1]),
        (np.s_[:, :-1], np.s_[:, 1:]),
    ):
        np.maximum(result[into], values[other], out=result[into])
    return result


def _grown(region: Mask) -> Mask:
    """A region and the two rings of pixels around it, where its soft edge runs out."""
    return _with_neighbours(_with_neighbours(region))


def _thing(pixels: Floats, level: Floats, near: Mask, count: int) -> SeenThing | None:
    """The thing in a region with its soft edge, or None when it is like none of ours."""
    offsets = pixels[near] - level
    colour = _colour(offsets.mean(axis=0), level)
    if colour is None:
        return None
    axis = np.array(COLOURS[colour]) - level
    covered = np.zeros(near.shape)
    covered[near] = offsets @ _METRIC @ axis / (axis @ _METRIC @ axis)
    height, width = near.shape
    area = covered.sum()
    x = covered.sum(axis=0) @ (np.arange(width) + 0.5) / area
    y = covered.sum(axis=1) @ (np.arange(height) + 0.5) / area
    rows, columns = (slice(where.min(), where.max() + 1) for where in near.nonzero())
    overlap, shape, radius = _best_template(
        covered[rows, columns].clip(0, 1), area, x - columns.start, y - rows.start
    )
    if overlap < _SHAPE_OVERLAP:
        return None
    middle = y - CENTROID[shape] * radius
    relative = radius / min(height, width)
    thing = Thing(shape, colour, _size(relative, count))
    return SeenThing(thing, x / width, middle / height, relative)


def _colour(offset: Floats, level: Floats) -> str | None:
    """The colour whose direction from the background a thing's mean offset (3,) has.

    Anti-aliasing, blur and reduced chroma spread a thing's offset over more pixels but do not
    turn its mean.
    """
    axes = {name: np.array(rgb) - level for name, rgb in COLOURS.items()}
    cosines = {
        name: float(offset @ axis / np.linalg.norm(axis) / np.linalg.norm(offset))
        for name, axis in axes.items()
    }
    best = max(cosines, key=lambda name: cosines[name])
    return best if cosines[best] > _COLOUR_COSINE else None


def _best_template(covered: Floats, area: float, x: float, y: float) -> tuple[float, str, float]:
    """Overlap, shape and radius in pixels of the drawn shape most like a coverage (H, W).

    x, y: centre of mass.  Each shape is drawn with the same area and centre of mass, sharp and
    blurred as the picture may be.
    """
    blur_rows, blur_columns = (_blur_matrix(side) for side in covered.shape)
    best = (0.0, "", 0.0)
    for shape in SHAPES:
        radius = float(np.sqrt(area / _AREA[shape]))
        middle = y - CENTROID[shape] * radius
        template = coverage(shape, len(blur_rows), len(blur_columns), x, middle, radius)
        for _ in range(_BLURS):
            overlap = np.minimum(template, covered).sum() / np.maximum(template, covered).sum()
            best = max(best, (float(overlap), shape, radius))
            template = blur_rows @ template @ blur_columns
    return best


def _blur_matrix(side: int) -> Floats:
    """Convolution of `side` numbers with (1, 2, 1) / 4: a standard deviation of 0.7 pixels."""
    return np.asarray(np.eye(side) / 2 + (np.eye(side, k=1) + np.eye(side, k=-1)) / 4)


def _size(radius: float, count: int) -> str:
    """The size whose radius is nearest, as a ratio."""
    return min(SIZES, key=lambda size: abs(np.log(radius / RADII[count][size])))
