"""The built-in data set: scenes of simple shapes, drawn by rule from a seed and an index.

Nothing is stored and nothing is downloaded. Everything about a picture is known, so pictures of
any origin can be scored against a caption (`ldm.data.shapes_verifier`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from torch.utils.data import Dataset

from ldm.config import ConfigError
from ldm.data.drawing import draw, lay_out
from ldm.data.scenes import (
    BACKGROUNDS,
    CLASS_NAMES,
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    caption,
    is_held_out,
    single_scenes,
)
from ldm.data.transforms import side_lengths

__all__ = ["ShapesDataset"]

Split = Literal["train", "validation"]

_MIN_SIZE = 16  # below this a small triangle and a small circle look the same


class ShapesDataset(Dataset[dict[str, Any]]):
    """Drawn scenes; the captions of the two splits have no member in common.

    size: side of the pictures in pixels, or [height, width].
    objects: things per picture, 1 to 3, or a list of such numbers to take in turn.
    length: number of pictures. With one object, 1430 different training captions and 298
        validation captions are taken in a shuffled round, each with its own sizes and positions.
    seed: another seed draws other pictures and, with several objects, other captions.

    An item holds `image` (H, W, 3) uint8; `caption`; `class_label`, the index in `class_names` of
    the shape and colour of the first thing; `boxes` (N, 4) float32, left, top, width and height
    as fractions of the picture's, and `box_classes` (N,) int64; `segmentation` (H, W) int64, 0 on
    the background and 1 + class label on a thing; `sample_id`, its index.

    Raises ConfigError for a parameter out of range.
    """

    class_names = CLASS_NAMES

    def __init__(
        self,
        size: int | Sequence[int] = 64,
        objects: int | Sequence[int] = 1,
        *,
        split: Split = "train",
        length: int = 8192,
        seed: int = 0,
    ) -> None:
        self.height, self.width = side_lengths(size)
        if min(self.height, self.width) < _MIN_SIZE:
            raise ConfigError(f"size: {size}; expected sides of at least {_MIN_SIZE} pixels")
        self.objects = [objects] if isinstance(objects, int) else list(objects)
        if not self.objects or not set(self.objects) <= {1, 2, 3}:
            raise ConfigError(f"objects: {objects}; expected 1, 2 or 3, or a list of these")
        if split not in ("train", "validation"):
            raise ConfigError(f"split: {split!r}; expected 'train' or 'validation'")
        if length < 1:
            raise ConfigError(f"length: {length}; expected at least one picture")
        if seed < 0:
            raise ConfigError(f"seed: {seed}; expected a number that is not negative")
        self.length, self.seed, self.split = length, seed, split
        singles = [scene for scene in single_scenes() if self._is_mine(scene)]
        order = np.random.default_rng(seed).permutation(len(singles))
        self._singles: list[Scene] = [singles[i] for i in order]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The picture of this index and all that is known about it."""
        if not 0 <= index < self.length:
            raise IndexError(f"picture {index} of {self.length}")
        rng = np.random.default_rng([self.seed, self.split == "validation", index])
        scene = self._scene(index, rng)
        placed = lay_out(scene, self.height, self.width, rng)
        image, segmentation = draw(scene.background, placed, self.height, self.width)
        frame = np.array([self.width, self.height, self.width, self.height])
        return {
            "image": image,
            "caption": caption(scene),
            "class_label": scene.things[0].class_label,
            "boxes": (np.array([each.box for each in placed]) / frame).astype(np.float32),
            "box_classes": np.array([each.thing.class_label for each in placed], dtype=np.int64),
            "segmentation": segmentation,
            "sample_id": index,
        }

    def _is_mine(self, scene: Scene) -> bool:
        return is_held_out(caption(scene)) == (self.split == "validation")

    def _scene(self, index: int, rng: np.random.Generator) -> Scene:
        turn, which = divmod(index, len(self.objects))
        if self.objects[which] == 1:
            return self._singles[turn % len(self._singles)]
        while True:
            scene = _several(self.objects[which], rng)
            if self._is_mine(scene):
                return scene


def _several(count: int, rng: np.random.Generator) -> Scene:
    """A scene of several things, whose sizes may be left unsaid."""
    things = [
        Thing(str(rng.choice(SHAPES)), str(colour), (None, *SIZES)[rng.integers(3)])
        for colour in rng.choice(list(COLOURS), count, replace=False)
    ]
    relations = [str(rng.choice(list(RELATIONS))) for _ in things[1:]]
    background = str(rng.choice(list(BACKGROUNDS)))
    return Scene(tuple(things), background, relations=tuple(relations))
