"""Maps of labels that are painted: which colour stands for which label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm.config import ConfigError
from ldm.data.listing import existing_file, utf8_text
from ldm.data.opening import opened

__all__ = ["Palette"]

Colour = tuple[int, int, int]  # red, green and blue, 0 to 255

# modes of Pillow's whose pixels are colours, as far as no alpha is lost
_MODES = frozenset({"RGB", "P", "L", "1"})
_HEADERS = ("GIMP Palette", "Name:", "Columns:", "#")  # lines of a GIMP palette that are no colour


@dataclass(frozen=True)
class Palette:
    """The colours of labels 0, 1, 2, ..., with a name for each.

    names, colours: in the order of the labels.
    """

    names: tuple[str, ...]
    colours: tuple[Colour, ...]

    @staticmethod
    def of(palette: Mapping[str, Sequence[int]] | str | Path) -> Palette:
        """A palette from a user's values, or from a file.

        palette: colours [red, green, blue] by name, in the order of the labels; or a text file with
            a label on each line, `red green blue name`, as in GIMP's palettes (`.gpl`).

        Raises ConfigError for what is no colour, and for a colour that stands for two labels.
        """
        if isinstance(palette, str | Path):
            expected = "lines 'red green blue name'"
            pairs = _read(existing_file(palette, key="palette", expected=expected))
        else:
            pairs = [(str(name), list(colour)) for name, colour in palette.items()]
        if not pairs:
            raise ConfigError("palette: holds no colours; expected one for each label")
        seen: dict[Colour, str] = {}
        for name, numbers in pairs:
            colour = _colour(name, numbers)
            if colour in seen:
                raise ConfigError(
                    f"palette: {name} and {seen[colour]} are both {list(colour)}; expected a "
                    "colour of its own for each label"
                )
            seen[colour] = name
        return Palette(tuple(seen.values()), tuple(seen))

    def read(self, path: Path) -> NDArray[np.int64]:
        """The labels (H, W) of a painted PNG.

        Raises ConfigError for a colour that is none of the palette, with the file, the first such
        pixel, its colour, and the nearest label; and one of `ldm.data.decoding.UNREADABLE` for
        another file than a PNG without alpha.
        """
        with opened(path) as image:
            _require_colours(image)
            pixels = np.asarray(image.convert("RGB"))
        numbers = _numbers(pixels)
        known = _numbers(np.array(self.colours))
        order = np.argsort(known)
        place = np.searchsorted(known, numbers, sorter=order).clip(max=len(known) - 1)
        labels = order[place]
        unknown = known[labels] != numbers
        if unknown.any():
            self._raise(path, pixels, np.argwhere(unknown)[0])
        found: NDArray[np.int64] = labels.astype(np.int64)
        return found

    def size(self, path: Path) -> tuple[int, int]:
        """Height and width of a painted map, by its header; raises as `read` does."""
        with opened(path) as image:
            _require_colours(image)
            return image.height, image.width

    def _raise(self, path: Path, pixels: NDArray[np.uint8], place: NDArray[np.int64]) -> None:
        """Raise ConfigError for the colour at a place."""
        row, column = (int(each) for each in place)
        colour = pixels[row, column].astype(int)
        nearest = int(np.square(np.array(self.colours) - colour).sum(axis=1).argmin())
        raise ConfigError(
            f"{path}: the pixel in row {row}, column {column} is {colour.tolist()}, none of the "
            f"{len(self.colours)} colours of the palette; the nearest is {self.names[nearest]} "
            f"(label {nearest}), {list(self.colours[nearest])}"
        )


def _require_colours(image: Image.Image) -> None:
    """Raise ValueError unless an image is a PNG of colours without alpha."""
    if image.format != "PNG":
        raise ValueError(f"is a {image.format} file, expected a PNG, which keeps colours")
    if image.mode not in _MODES:
        raise ValueError(f"is an image of mode {image.mode}, expected colours without alpha")


def _read(path: Path) -> list[tuple[str, list[int]]]:
    """Names and numbers of the lines of a file."""
    pairs = []
    for number, text in enumerate(utf8_text(path).splitlines(), start=1):
        if not text.strip() or text.startswith(_HEADERS):
            continue
        words = text.split(maxsplit=3)
        if len(words) < 3 or not all(word.isdecimal() for word in words[:3]):
            raise ConfigError(
                f"palette: line {number} of {path} is {text!r}; expected 'red green blue name'"
            )
        name = words[3].strip() if len(words) > 3 else f"line {number}"
        pairs.append((name, [int(word) for word in words[:3]]))
    return pairs


def _colour(name: str, numbers: Sequence[int]) -> Colour:
    levels = [number for number in numbers if isinstance(number, int) and 0 <= number <= 255]
    if len(numbers) != 3 or len(levels) != 3:
        raise ConfigError(
            f"palette: {name}: {list(numbers)}; expected [red, green, blue], whole numbers 0 to 255"
        )
    return levels[0], levels[1], levels[2]


def _numbers(pixels: NDArray[np.integer]) -> NDArray[np.int64]:
    """One number for each colour (..., 3)."""
    red, green, blue = np.moveaxis(pixels.astype(np.int64), -1, 0)
    numbers: NDArray[np.int64] = (red << 16) | (green << 8) | blue
    return numbers
