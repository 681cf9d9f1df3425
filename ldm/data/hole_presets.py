"""Holes by name: thin, medium and thick as LaMa draws them, a half, and a border.

Suvorov et al. 2022 (LaMa, arXiv:2109.07161) hide either strokes of a brush, lines of several
segments that turn at random, or boxes. How long, wide and many they are follows the settings of
its training and test masks, here as shares of the picture's side, so that pictures of any size are
hidden alike (of few pixels, thin lines hide more: none is below a pixel wide). Chosen here: these
shares, that a piece is left out which would hide more than `MOST` of a picture, and `half` and
`outpaint`.

What share of a picture each hides, in 2000 draws of 256 x 256 pixels:

| preset | mean | in 90 % of the draws | most |
| --- | --- | --- | --- |
| thin | 0.10 | 0.02 to 0.17 | 0.21 |
| medium | 0.16 | 0.04 to 0.28 | 0.43 |
| thick | 0.32 | 0.07 to 0.64 | 0.75 |
| half | 0.50 | 0.50 | 0.50 |
| outpaint | 0.58 | 0.41 to 0.73 | 0.81 |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import numpy as np

from ldm.data.holes import Holes, Point, lines

__all__ = [
    "MOST",
    "PRESETS",
    "Boxes",
    "Brush",
    "Preset",
    "Strokes",
    "brushed",
    "half",
    "outpaint",
]

Preset = Literal["thin", "medium", "thick", "half", "outpaint"]
_Range: TypeAlias = tuple[float, float]
_Segment: TypeAlias = tuple[tuple[Point, Point], float]  # its ends, and half its width, in pixels

MOST = 0.75  # share of a picture that strokes or boxes hide at most

_SEGMENTS = (1, 5)  # of a stroke
_BORDER = (0.05, 0.3)  # width of what `outpaint` hides on each side, as a share of the side


@dataclass(frozen=True)
class Strokes:
    """Lines of a brush: how many, and length and width of a segment, shares of the short side."""

    count: tuple[int, int]
    length: _Range
    width: _Range


@dataclass(frozen=True)
class Boxes:
    """Rectangles: how many, and their height and width, shares of the picture's."""

    count: tuple[int, int]
    side: _Range


@dataclass(frozen=True)
class Brush:
    """Strokes, or boxes in their place with a probability."""

    strokes: Strokes
    boxes: Boxes | None = None
    boxes_p: float = 0.0


THIN = Brush(Strokes(count=(4, 50), length=(0.02, 0.1), width=(0.01, 0.03)))
MEDIUM = Brush(
    Strokes(count=(3, 6), length=(0.04, 0.3), width=(0.02, 0.16)),
    Boxes(count=(1, 5), side=(0.06, 0.3)),
    boxes_p=0.25,
)
THICK = Brush(
    Strokes(count=(1, 5), length=(0.04, 0.8), width=(0.02, 0.4)),
    Boxes(count=(1, 4), side=(0.12, 0.6)),
    boxes_p=0.5,
)


def brushed(height: int, width: int, rng: np.random.Generator, brush: Brush) -> Holes:
    """Strokes, or boxes, that hide a pixel at least, and `MOST` of the picture at most.

    A piece, segment or box, that would hide more in all is left out. For pictures of 8 x 8 pixels
    or more.
    """
    most = MOST * height * width
    if brush.boxes is not None and rng.random() < brush.boxes_p:
        pieces = _boxes(height, width, rng, brush.boxes)
    else:
        segments = list(_segments(height, width, rng, brush.strokes))
        if sum(map(_area, segments)) <= most:
            return lines(height, width, segments)
        pieces = (lines(height, width, [segment]) for segment in segments)
    hidden = np.zeros((height, width), bool)
    for piece in pieces:
        more = hidden | piece
        if np.count_nonzero(more) <= most:
            hidden = more
    return hidden


def half(height: int, width: int, rng: np.random.Generator) -> Holes:
    """The left, right, upper or lower half, each as probable as the others.

    Of an odd number of rows or columns the one in the middle is seen.
    """
    hidden = np.zeros((height, width), bool)
    turned = hidden if rng.random() < 0.5 else hidden.T
    count = turned.shape[0] // 2
    turned[slice(None, count) if rng.random() < 0.5 else slice(-count, None)] = True
    return hidden


def outpaint(height: int, width: int, rng: np.random.Generator) -> Holes:
    """A border around a window that is seen: 0.05 to 0.3 of the side wide, at each side anew.

    At least a pixel wide. For pictures of 4 x 4 pixels or more.
    """
    hidden = np.ones((height, width), bool)
    shares = rng.uniform(*_BORDER, size=4)
    top, bottom = (max(1, round(share * height)) for share in shares[:2])
    left, right = (max(1, round(share * width)) for share in shares[2:])
    hidden[top : height - bottom, left : width - right] = False
    return hidden


def _segments(
    height: int, width: int, rng: np.random.Generator, strokes: Strokes
) -> Iterator[_Segment]:
    """Each segment of every stroke."""
    short = min(height, width)
    for _ in range(_count(strokes.count, rng)):
        start: Point = (rng.uniform(0, width - 1), rng.uniform(0, height - 1))
        turn = rng.uniform(0, 2 * np.pi)
        for _ in range(_count(_SEGMENTS, rng)):
            turn += rng.uniform(-np.pi / 2, np.pi / 2)
            length = rng.uniform(*strokes.length) * short
            end: Point = (
                float(np.clip(start[0] + length * np.cos(turn), 0, width - 1)),
                float(np.clip(start[1] + length * np.sin(turn), 0, height - 1)),
            )
            yield (start, end), max(0.5, rng.uniform(*strokes.width) * short / 2)
            start = end


def _area(segment: _Segment) -> float:
    """As many pixels as a segment hides, or more."""
    (start, end), radius = segment
    thickness = 2 * radius + 2
    return (math.dist(start, end) + thickness) * thickness


def _boxes(height: int, width: int, rng: np.random.Generator, boxes: Boxes) -> Iterator[Holes]:
    for _ in range(_count(boxes.count, rng)):
        high, wide = (max(1, round(rng.uniform(*boxes.side) * side)) for side in (height, width))
        top, left = rng.integers(0, (height - high, width - wide), endpoint=True)
        piece = np.zeros((height, width), bool)
        piece[top : top + high, left : left + wide] = True
        yield piece


def _count(limits: tuple[int, int], rng: np.random.Generator) -> int:
    return int(rng.integers(*limits, endpoint=True))


PRESETS: dict[Preset, Callable[[int, int, np.random.Generator], Holes]] = {
    "thin": partial(brushed, brush=THIN),
    "medium": partial(brushed, brush=MEDIUM),
    "thick": partial(brushed, brush=THICK),
    "half": half,
    "outpaint": outpaint,
}
