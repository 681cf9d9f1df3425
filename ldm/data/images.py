"""Images in files: what every data set of files has in common.

A file that cannot be used is a `BadSample`; what becomes of it is for others to say
(`ldm.data.substitutes`). Headers are looked at in the beginning, for some seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ldm.config import ConfigError, did_you_mean
from ldm.data.captions import mentions_a_side
from ldm.data.decoding import UNREADABLE, reason
from ldm.data.listing import class_of
from ldm.data.pixels import PixelFormat
from ldm.data.substitutes import BadSample, Fault, printable
from ldm.data.transforms import Framing, Window
from ldm.log import log, rank

__all__ = ["MIN_SIDE", "ImageFiles"]

MIN_SIDE = 8  # pixels; narrower images are as good as damaged
_SURVEY_SECONDS = 5.0  # headers not looked at by then are found when they are used
_SURVEY_CHUNK = 1024
_NAMED = 10  # bad files named in one message; the others are counted


class ImageFiles(Dataset[dict[str, Any]]):
    """Images below a directory, by name, each framed to one size.

    root: directory.  names: files relative to it.  framing: crop, size and flip.
    pixels: channels, type and range, RGB in uint8 by default.  fast_decode: let JPEG decode at a
    reduced size (see `read_image`).

    `item(index, rng)` is a dictionary with `image` (H, W, channels) in 0..255 as uint8 or in
    [-1, 1] as float32, `relpath`, and what a subclass adds in `facts`. Every random choice is drawn
    from `rng`.

    `beside`, when another data set assigns it, reads what lies beside an image from the image's
    name and size (H, W): an array (H, W, C) that is framed as the image is, by the nearest pixel,
    and becomes `beside` of the item.

    `class_names` are those of a subclass whose classes are directories, in the order of the labels.

    Raises ConfigError when no file can be used.
    """

    class_names: Sequence[str] = ()
    beside: Callable[[str, tuple[int, int]], NDArray[Any]] | None = None

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        framing: Framing,
        *,
        pixels: PixelFormat | None = None,
        fast_decode: bool = False,
    ) -> None:
        self.root, self.names, self.framing = root, names, framing
        self.pixels, self.fast_decode = pixels or PixelFormat(), fast_decode
        # at least MIN_SIDE: a picture that a draft made narrow is not a narrow picture
        self._draft_side = max(framing.height, framing.width, MIN_SIDE) if fast_decode else None
        self._bad: dict[int, str] = {}
        self._survey()
        self._require_one()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item with the random choices of epoch 0."""
        return self.item(index, np.random.default_rng([0, 0, index]))

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The sample at `index`; BadSample where it cannot be read."""
        pixels = self._good(index)
        facts = self.facts(index, rng)
        window = self.window(index, pixels.shape[0], pixels.shape[1], rng)
        flips = self.framing.flips(rng) and not mentions_a_side(facts.get("caption", ""))
        image = self.framing.framed(pixels, window, flips=flips)
        within = self.facts_within(index, window, flips=flips)
        if self.beside is not None:
            other = self.beside(self.names[index], pixels.shape[:2])
            nearest = replace(self.framing, interpolation="nearest")
            within["beside"] = nearest.framed(other, window, flips=flips)
        return {"image": image, "relpath": self.names[index], **facts, **within}

    def name_of(self, index: int) -> str:
        """The file of a sample."""
        return str(self.root / self.names[index])

    def known_bad(self) -> list[Fault]:
        """The samples that are known to be bad so far, with the reason."""
        return [(printable(self.name_of(index)), why) for index, why in self._bad.items()]

    def facts(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """What is known about a sample beside its pixels: labels, captions."""
        return {}

    def window(self, index: int, rows: int, columns: int, rng: np.random.Generator) -> Window:
        """The window that is cut out of a sample of so many pixels."""
        return self.framing.window(rows, columns, rng)

    def facts_within(self, index: int, window: Window, *, flips: bool) -> dict[str, Any]:
        """What is known about the part of a sample that is seen, mirrored or not: boxes, maps."""
        return {}

    def class_facts(self, index: int) -> dict[str, Any]:
        """`class_label` and `human_label`: the place and the name of the sample's directory."""
        name = class_of(self.names[index])
        return {"class_label": self.class_names.index(name), "human_label": name}

    def adopt_classes(self, names: Sequence[str]) -> None:
        """Number the classes as another set does: a label must mean the same in both.

        Raises ConfigError for a class of this set that is not among `names`.
        """
        for name in self.class_names:
            if name not in names:
                raise ConfigError(
                    f"{self.root}: the class {name!r} is none of the {len(names)} of the training "
                    f"set{did_you_mean(name, names)}"
                )
        self.class_names = list(names)

    def _good(self, index: int) -> NDArray[Any]:
        """The pixels of the sample at `index`; BadSample where it has none."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        found = self._bad[index] if index in self._bad else self._pixels_at(index)
        if isinstance(found, str):
            raise BadSample(self.name_of(index), found)
        return found

    def _require_one(self) -> None:
        """Raise ConfigError unless there is a sample that can be read."""
        for index in range(len(self)):
            try:
                self._good(index)
            except BadSample as error:
                self._bad[index] = error.fault[1]
            else:
                return
        raise ConfigError(
            f"{self.root}: none of its {len(self)} image files can be used: {self._bad_names()}"
        )

    def _pixels_at(self, index: int) -> NDArray[Any] | str:
        """The pixels of the sample at `index`, or what is wrong with it."""
        return self._pixels(self.names[index])

    def _pixels(self, name: str) -> NDArray[Any] | str:
        """A file's pixels, or what is wrong with it."""
        try:
            pixels = self.pixels.read(self.root / name, draft_side=self._draft_side)
        except UNREADABLE as error:
            return reason(error)
        # asked again after the survey: how far that came depends on the disk
        return _too_narrow(pixels.shape[1], pixels.shape[0]) or pixels

    def _survey(self) -> None:
        """Looks at the headers, for as long as it may take, and says once what was found."""
        deadline = time.monotonic() + _SURVEY_SECONDS
        small, seen = 0, 0
        with ThreadPoolExecutor(max_workers=8) as pool:
            while seen < len(self) and time.monotonic() < deadline:
                chunk = self.names[seen : seen + _SURVEY_CHUNK]
                for index, found in enumerate(pool.map(self._inspect, chunk), start=seen):
                    if isinstance(found, str):
                        self._bad[index] = found
                    else:
                        small += found
                seen += len(chunk)
        if rank() or len(self._bad) == len(self):
            return  # rank 0 speaks for all; `_require_one` says when nothing is good
        if self._bad:
            log.warning(
                "%s: %d of %d image files cannot be used: %s",
                self.root,
                len(self._bad),
                seen,
                self._bad_names(),
            )
        if small:
            log.info(
                "%s: %d of %d images are smaller than %d x %d and are enlarged",
                self.root,
                small,
                seen,
                self.framing.width,
                self.framing.height,
            )

    def _inspect(self, name: str) -> str | bool:
        """What is wrong with a file as far as its header shows, or whether the image is small."""
        try:
            width, height = self.pixels.size(self.root / name)
        except UNREADABLE as error:
            return reason(error)
        return _too_narrow(width, height) or (
            min(width / self.framing.width, height / self.framing.height) < 1
        )

    def _bad_names(self) -> str:
        named = [
            f"{printable(self.names[i])} ({why})" for i, why in list(self._bad.items())[:_NAMED]
        ]
        more = len(self._bad) - len(named)
        return ", ".join(named) + (f", and {more} more" if more else "")


def _too_narrow(width: int, height: int) -> str | None:
    """Why an image of this size cannot be used, None when it can."""
    return f"{width} x {height} pixels" if min(width, height) < MIN_SIDE else None
