"""Images in files: what every data set of files has in common.

Files that cannot be used are counted, named once, and replaced by their next good neighbour in the
list. Which sample takes whose place depends on the list alone, so it is the same in every process
and every epoch.
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
        self._good_from(0)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item with the random choices of epoch 0."""
        return self.item(index, np.random.default_rng([0, 0, index]))

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The sample at `index`, or the next one that can be read."""
        good, pixels = self.good(index)
        facts = self.facts(good, rng)
        window = self.window(good, pixels.shape[0], pixels.shape[1], rng)
        flips = self.framing.flips(rng) and not mentions_a_side(facts.get("caption", ""))
        image = self.framing.framed(pixels, window, flips=flips)
        within = self.facts_within(good, window, flips=flips)
        if self.beside is not None:
            other = self.beside(self.names[good], pixels.shape[:2])
            nearest = replace(self.framing, interpolation="nearest")
            within["beside"] = nearest.framed(other, window, flips=flips)
        return {"image": image, "relpath": self.names[good], **facts, **within}

    def good(self, index: int) -> tuple[int, NDArray[Any]]:
        """Index and pixels of the sample at `index`, or of the next one that can be read."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self._good_from(index)

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

    def _good_from(self, index: int) -> tuple[int, NDArray[Any]]:
        """The first sample from `index` on, around the end, that can be read, and its pixels."""
        for step in range(len(self)):
            candidate = (index + step) % len(self)
            if candidate in self._bad:
                continue
            pixels = self._pixels_at(candidate)
            if not isinstance(pixels, str):
                return candidate, pixels
            self._bad[candidate] = pixels
            log.warning(
                "%s: %s (%s) is replaced by its neighbour; %d of %d files are bad so far",
                self.root,
                self.names[candidate],
                self._bad[candidate],
                len(self._bad),
                len(self),
            )
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
            return  # rank 0 speaks for all; `_good_from` says when nothing is good
        if self._bad:
            log.warning(
                "%s: %d of %d image files cannot be used and are replaced by their neighbours: %s",
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
        named = [f"{self.names[i]} ({why})" for i, why in list(self._bad.items())[:_NAMED]]
        more = len(self._bad) - len(named)
        return ", ".join(named) + (f", and {more} more" if more else "")


def _too_narrow(width: int, height: int) -> str | None:
    """Why an image of this size cannot be used, None when it can."""
    return f"{width} x {height} pixels" if min(width, height) < MIN_SIDE else None
