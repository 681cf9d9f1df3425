"""The language of drawn scenes: what can be in one, and the caption that says so.

A caption and a `Scene` are two spellings of the same thing: `parse(caption(scene)) == scene` for
every scene, and a text that `caption` would not write is refused. What a caption leaves unsaid
(a size, a place) is None in the scene and free in the picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ldm.hashing import hash64

__all__ = [
    "BACKGROUNDS",
    "CLASS_NAMES",
    "COLOURS",
    "PLACES",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "SPECIAL_TOKENS",
    "Scene",
    "Thing",
    "caption",
    "is_held_out",
    "parse",
    "single_scenes",
    "vocabulary",
]

SHAPES = ("circle", "square", "triangle", "cross")
SIZES = ("small", "large")

# sRGB; any two of these, and any two of a colour and a background, differ by 90 or more
COLOURS = {
    "red": (215, 40, 45),
    "orange": (245, 130, 30),
    "yellow": (250, 215, 60),
    "green": (55, 165, 90),
    "blue": (60, 115, 235),
    "purple": (130, 50, 175),
}
BACKGROUNDS = {
    "white": (252, 252, 252),
    "grey": (165, 165, 165),
    "black": (12, 12, 12),
    "navy": (25, 35, 105),
}

# column and row of the middle of the object, each 0, 1 or 2
PLACES = {
    "at the top left": (0, 0),
    "at the top": (1, 0),
    "at the top right": (2, 0),
    "at the left": (0, 1),
    "in the centre": (1, 1),
    "at the right": (2, 1),
    "at the bottom left": (0, 2),
    "at the bottom": (1, 2),
    "at the bottom right": (2, 2),
}

# the direction from the second object to the first: x to the right, y downwards
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}

CLASS_NAMES = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# one caption in this many belongs to the validation split
_HELD_OUT = 6


@dataclass(frozen=True)
class Thing:
    """An object of a scene; `size` is None where the caption does not say it."""

    shape: str
    colour: str
    size: str | None = None

    @property
    def class_label(self) -> int:
        """Index in `CLASS_NAMES`: the combination of shape and colour."""
        return SHAPES.index(self.shape) * len(COLOURS) + list(COLOURS).index(self.colour)


@dataclass(frozen=True)
class Scene:
    """One to three things of different colours on a background.

    place: where a single thing is; None when unsaid, and always with several things.
    relations: `relations[i]` is how the first thing lies to `things[i + 1]`.
    """

    things: tuple[Thing, ...]
    background: str
    place: str | None = None
    relations: tuple[str, ...] = ()


def _thing_phrase(thing: Thing) -> str:
    words = " ".join(word for word in (thing.size, thing.colour, thing.shape) if word)
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def caption(scene: Scene) -> str:
    """The scene in words, as in "a small red circle left of a blue square on white"."""
    first, *others = (_thing_phrase(thing) for thing in scene.things)
    told = [f"{relation} {other}" for relation, other in zip(scene.relations, others, strict=True)]
    middle = scene.place or " and ".join(told)
    return " ".join(part for part in (first, middle, "on", scene.background) if part)


def _one_of(words: Iterable[str]) -> str:
    # the longest first, so that "at the top left" is not read as "at the top"
    return f"({'|'.join(sorted(words, key=len, reverse=True))})"


_THING = rf"an? (?:{_one_of(SIZES)} )?{_one_of(COLOURS)} {_one_of(SHAPES)}"
_RELATED = rf" {_one_of(RELATIONS)} {_THING}"
_CAPTION = re.compile(
    rf"{_THING}(?: {_one_of(PLACES)}|{_RELATED}(?: and{_RELATED})?)? on {_one_of(BACKGROUNDS)}"
)


def parse(text: str) -> Scene:
    """The scene a caption describes; the inverse of `caption`.

    Raises ValueError for a text outside the grammar and for two things of one colour.
    """
    match = _CAPTION.fullmatch(text)
    if match is None:
        raise ValueError(
            f"not a caption of a drawn scene: {text!r}; expected something like "
            "'a small red circle at the top left on white' or "
            "'a small red circle left of a blue square on white'"
        )
    size, colour, shape, place, *related, background = match.groups()
    things, relations = [Thing(shape, colour, size)], []
    for start in range(0, len(related), 4):
        relation, size, colour, shape = related[start : start + 4]
        if relation:
            relations.append(relation)
            things.append(Thing(shape, colour, size))
    scene = Scene(tuple(things), background, place, tuple(relations))
    if len({thing.colour for thing in things}) < len(things):
        raise ValueError(f"two things of one colour cannot be told apart: {text!r}")
    if caption(scene) != text:
        raise ValueError(f"not a caption of a drawn scene: {text!r}; expected {caption(scene)!r}")
    return scene


def is_held_out(text: str) -> bool:
    """Whether a caption belongs to the validation split: the same answer on every machine.

    About one caption in six is held out, so each attribute is seen in training while the
    combination is not.
    """
    return hash64(text.encode()) % _HELD_OUT == 0


def single_scenes() -> list[Scene]:
    """Every scene of one thing with nothing left unsaid."""
    return [
        Scene((Thing(shape, colour, size),), background, place)
        for shape in SHAPES
        for colour in COLOURS
        for size in SIZES
        for place in PLACES
        for background in BACKGROUNDS
    ]


def vocabulary() -> list[str]:
    """Every word a caption can contain, sorted."""
    grammar = ("a", "an", "on", "and", *SHAPES, *SIZES, *COLOURS, *BACKGROUNDS, *PLACES, *RELATIONS)
    return sorted({word for phrase in grammar for word in phrase.split()})
