"""Images with holes, what a model that fills holes is trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ldm.config import ConfigError, did_you_mean
from ldm.data.hole_presets import PRESETS, Preset
from ldm.data.holes import Holes, Shape, drawn, hole
from ldm.data.mask_files import with_masks
from ldm.data.wrapped import Wrapped, entry
from ldm.ranges import Weight

__all__ = ["Kind", "Masked", "masked"]

Kind = Literal[Shape, Preset]

_SHARE = (0.05, 0.5)
_MOST = 0.95  # share of a picture that is hidden: of more, few shapes hide anything new


def masked(images: NDArray[Any], hidden: Holes) -> NDArray[Any]:
    """Images (..., H, W, C), black where a pixel is hidden (..., H, W); their type is kept.

    Black is 0 of uint8 and -1 of floating point in [-1, 1].

    published: (1 - mask) * image in [0, 1], brought to [-1, 1] after that, which makes it -1.
    """
    black = images.dtype.type(0 if images.dtype == np.uint8 else -1)
    return np.where(hidden[..., None], black, images)


class Masked(Wrapped):
    """Another data set with a hole in each image: what a model that fills holes is trained on.

    source: the data set.
    kinds: what hides something, one or several, each as probable as the others or with its weight,
        such as {thick: 2, half: 1}. One is drawn for each image: `thin`, `medium` and `thick` are
        LaMa's strokes and boxes, `half` and `outpaint` hide a half and a border
        (`ldm.data.hole_presets`, where the share that each hides is). `box` and `stroke` are
        shapes of `share`, and mixed in one image where both are given (`ldm.data.holes`). By
        default `box` and `stroke`.
    share: [least, most] of an image that `box` and `stroke` hide, above 0 and up to 0.95; by
        default 0.05 and 0.5.
    masks: in place of kinds, a directory with a PNG for each image, of the same name and size,
        white where it is hidden. It is cut, resized and mirrored as its image is. The source is an
        `ImageFolder` or an `ImageList` then.
    key: entry that holds the image.

    An item is that of the source, with `mask` (H, W, 1) uint8, 255 where a pixel is hidden and 0
    elsewhere, and `masked_image` (H, W, C), of the image's type and black where it is hidden. Holes
    are functions of seed, epoch and sample: training sees new ones in each epoch, validation the
    same.
    Raises ConfigError for a parameter out of range or without effect, for masks that do not fit
    their images (`ldm.data.mask_files.with_masks`), and, when it is used, for a source that has one
    of these entries of its own.
    """

    def __init__(
        self,
        source: Any,
        *,
        kinds: Kind | Sequence[Kind] | Mapping[Kind, Weight] | None = None,
        share: Sequence[float] | None = None,
        masks: str | Path | None = None,
        key: str = "image",
    ) -> None:
        super().__init__(source)
        self.key, self.has_files = key, masks is not None
        self.kinds: Mapping[str, float] = {}
        if masks is None:
            self.kinds = _weights(("box", "stroke") if kinds is None else kinds)
        else:
            if kinds is not None:
                raise ConfigError(f"kinds: {kinds}; expected none beside masks, which are files")
            self.source = with_masks(self.source, masks)
        self.shapes: dict[Any, float] = {
            kind: weight for kind, weight in self.kinds.items() if kind in get_args(Shape)
        }
        self.share = _limits(share, has_shapes=bool(self.shapes))

    def changed(self, item: dict[str, Any], index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The item, with its hole."""
        for name in ("mask", "masked_image"):
            if name in item:
                raise ConfigError(f"source: {type(self.source).__name__} has a {name!r} of its own")
        image = entry(item, self.key, self.source)
        image = image if image.ndim == 3 else image[..., None]
        if self.has_files:
            hidden = item.pop("beside")[..., 0] > 0
        else:
            height, width = image.shape[:2]
            hidden = self._hole(height, width, rng)
        mask = hidden[..., None].astype(np.uint8) * 255
        return {**item, "mask": mask, "masked_image": masked(image, hidden)}

    def _hole(self, height: int, width: int, rng: np.random.Generator) -> Holes:
        kind = drawn(self.kinds, rng) if len(self.kinds) > len(self.shapes) else None
        if kind in PRESETS:
            return PRESETS[kind](height, width, rng)
        is_plain = len(set(self.shapes.values())) == 1
        shapes = tuple(self.shapes) if is_plain else self.shapes
        return hole(height, width, rng, kinds=shapes, share=self.share)


def _weights(kinds: str | Collection[Kind] | Mapping[Kind, float]) -> dict[str, float]:
    """Each kind with its weight; ConfigError for an unknown one, and where none is left."""
    names: list[Any] = [kinds] if isinstance(kinds, str) else list(kinds)
    known = get_args(Kind)
    for name in names:
        if name not in known:
            expected = f"expected {', '.join(known)}{did_you_mean(name, known)}"
            raise ConfigError(f"kinds: {name!r}; {expected}")
    # one that is named twice weighs twice as much
    weights = kinds if isinstance(kinds, Mapping) else Counter(names)
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise ConfigError(f"kinds: {name}: {weight}; expected a weight, 0 or more")
    left = {name: float(weight) for name, weight in weights.items() if weight > 0}
    if not left:
        raise ConfigError(f"kinds: none; expected one or more of {', '.join(known)}")
    return left


def _limits(share: Sequence[float] | None, *, has_shapes: bool) -> tuple[float, float]:
    """Least and most share that is hidden; ConfigError for one that cannot be, or has no effect."""
    if share is None:
        return _SHARE
    if len(share) != 2 or not 0 < share[0] <= share[1] <= _MOST:
        raise ConfigError(
            f"share: {list(share)}; expected [least, most] of an image, above 0 and up to {_MOST}"
        )
    if not has_shapes:
        raise ConfigError(
            f"share: {list(share)}; expected none without box or stroke among kinds: the others "
            "have ranges of their own"
        )
    return share[0], share[1]
