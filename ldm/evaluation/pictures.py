"""Image files that a user names, read one by one; bad ones are counted and named."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.config import ConfigError, nearest_path
from ldm.data.decoding import EXTENSIONS, UNREADABLE, reason
from ldm.data.listing import list_files
from ldm.data.pixels import PixelFormat
from ldm.data.transforms import Framing
from ldm.log import log

__all__ = ["Pictures", "image_files"]


def image_files(
    words: Sequence[str | Path], extensions: Collection[str] = EXTENSIONS
) -> list[Path]:
    """The files that words name: files as they are, of directories every image at any depth.

    extensions: of the images in directories, see `ldm.data.listing.list_files`.
    Raises ConfigError for a name that is neither, and for a directory without images.
    """
    found: list[Path] = []
    for word in words:
        path = Path(word).expanduser()
        if path.is_dir():
            found += [path / name for name in list_files(path, extensions)[0]]
        elif path.is_file():
            found.append(path)
        else:
            near = nearest_path(path.absolute())
            hint = f"; did you mean {near}?" if near else ""
            raise ConfigError(f"{path}: there is no such image or directory{hint}")
    return found


class Pictures:
    """Images of files in order, each a batch of one with its path as its name.

    pixels: channels, type and range, RGB in uint8 by default.  size: side of the largest square in
    the centre, resized; None leaves the images as they are.

    `bad` fills while one iterates: path to what is wrong with it.
    """

    def __init__(
        self, paths: Sequence[Path], pixels: PixelFormat | None = None, size: int | None = None
    ) -> None:
        self.paths, self.pixels = list(paths), pixels or PixelFormat()
        self.framing = None if size is None else Framing.of(size)
        self.bad: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[tuple[list[str], Tensor]]:
        """Name and image (1, H, W, C), uint8 or float32, of every file that can be read.

        Raises ConfigError when none can.
        """
        self.bad = {}
        for path in self.paths:
            try:
                pixels = self.pixels.read(path)
            except UNREADABLE as error:
                self.bad[str(path)] = reason(error)
                log.warning("%s is left out: %s", path, self.bad[str(path)])
                continue
            if self.framing is not None:
                pixels = self.framing(pixels, np.random.default_rng(0))  # nothing is drawn
            yield [str(path)], torch.from_numpy(np.array(pixels))[None]
        if len(self.bad) == len(self.paths):
            name, why = next(iter(self.bad.items()), ("no file", "nothing was named"))
            raise ConfigError(
                f"none of {len(self.paths)} image files can be read; the first is {name}: {why}"
            )
