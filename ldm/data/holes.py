"""Holes that shapes make in a picture: boxes and strokes, as much as is asked for of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["Holes", "Point", "Shape", "box", "drawn", "hole", "lines", "stroke"]

Holes: TypeAlias = NDArray[np.bool_]  # (H, W), true where a pixel is hidden
Point: TypeAlias = tuple[float, float]  # x, y in pixels
Shape = Literal["box", "stroke"]
_Kind = TypeVar("_Kind", bound=str)

_LARGEST = 0.5  # side of a box, or length of a stroke's segment, as a share of the picture's side
_THICKEST = 0.15  # half of a stroke's width, likewise
_SMALLER = 0.9  # times as large is what is tried next where something would hide too much


def box(height: int, width: int, rng: np.random.Generator, scale: float = 1.0) -> Holes:
    """A rectangle anywhere; its sides are up to `scale` half of the picture's, at least a pixel."""
    most = [max(1, round(side * _LARGEST * scale)) for side in (height, width)]
    high, wide = (int(rng.integers(1, each, endpoint=True)) for each in most)
    top = int(rng.integers(0, height - high, endpoint=True))
    left = int(rng.integers(0, width - wide, endpoint=True))
    hidden = np.zeros((height, width), bool)
    hidden[top : top + high, left : left + wide] = True
    return hidden


def stroke(height: int, width: int, rng: np.random.Generator, scale: float = 1.0) -> Holes:
    """A thick line of 1 to 4 segments with round ends and joints, as a brush draws it.

    scale: 1 for segments up to half of the short side long and 0.3 of it wide.
    """
    short = min(height, width)
    radius = max(0.5, rng.uniform(0.3, 1.0) * _THICKEST * short * scale)
    points = [(rng.uniform(0, width), rng.uniform(0, height))]
    turn = rng.uniform(0, 2 * np.pi)
    for _ in range(int(rng.integers(1, 4, endpoint=True))):
        turn += rng.uniform(-np.pi / 2, np.pi / 2)
        length = rng.uniform(0.3, 1.0) * _LARGEST * short * scale
        x, y = points[-1]
        points.append(
            (
                float(np.clip(x + length * np.cos(turn), 0, width)),
                float(np.clip(y + length * np.sin(turn), 0, height)),
            )
        )
    return lines(height, width, [(points, radius)])


def lines(height: int, width: int, drawing: Iterable[tuple[Sequence[Point], float]]) -> Holes:
    """Lines, each through its points and twice its radius (in pixels) wide, with round joints."""
    page = Image.new("L", (width, height))
    pen = ImageDraw.Draw(page)
    for points, radius in drawing:
        pen.line(points, fill=1, width=max(1, round(2 * radius)))
        for x, y in points:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    return np.asarray(page) > 0


_SHAPES: dict[Shape, Callable[..., Holes]] = {"box": box, "stroke": stroke}


def hole(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    kinds: Sequence[Shape] | Mapping[Shape, float] = ("box", "stroke"),
    share: tuple[float, float] = (0.05, 0.5),
) -> Holes:
    """Boxes and strokes of one picture, each of a kind drawn from `kinds`.

    kinds: all as probable as each other, or with their weights.
    share: least and most of the picture that is hidden. How much is to be hidden is drawn uniformly
        from this range; shapes are added until it is, smaller ones where one would hide more than
        the most. At least a pixel is hidden, and never more than the most unless that is less.
        With 0.05 and 0.5, a third is hidden on average (2000 draws of 256 x 256 pixels: 0.34; 0.13
        to 0.49 in 90 % of them).
        A hole of 512 x 512 pixels takes some milliseconds, or 0.3 s where both are 0.95, which is
        as much as `Masked` takes: the last free pixels have to be met by chance.
    """
    wanted, scale = rng.uniform(*share) * height * width, 1.0
    most = max(share[1] * height * width, 1)
    hidden = np.zeros((height, width), bool)
    while hidden.sum() < max(wanted, 1):
        more = hidden | _SHAPES[drawn(kinds, rng)](height, width, rng, scale)
        if more.sum() <= most:
            hidden = more
        elif scale * max(height, width) < 1:  # what would be added is a pixel, and one too many
            break
        else:
            scale *= _SMALLER
    return hidden


def drawn(kinds: Sequence[_Kind] | Mapping[_Kind, float], rng: np.random.Generator) -> _Kind:
    """One of several kinds, all as probable as each other or in proportion to their weights."""
    if not isinstance(kinds, Mapping):
        return kinds[int(rng.integers(len(kinds)))]
    weights = np.array(list(kinds.values()), dtype=np.float64)
    return list(kinds)[int(rng.choice(len(weights), p=weights / weights.sum()))]
