"""Masks that are drawn already: a PNG for each image, white where it is hidden."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm.config import ConfigError
from ldm.data.beside import paired, require_one_size, require_one_size_by_headers
from ldm.data.decoding import UNREADABLE, header_size, read_image, reason
from ldm.data.images import ImageFiles
from ldm.data.listing import existing_directory
from ldm.data.substitutes import BadSample

__all__ = ["MaskFiles", "with_masks"]

_WHITE = 128  # of 255: the least level that hides a pixel
_SURVEY_SECONDS = 5.0  # headers not looked at by then are found when they are used


@dataclass(frozen=True)
class MaskFiles:
    """The masks of images: `files` by the images' names below `root`."""

    root: Path
    files: dict[str, Path]

    def __call__(self, name: str, size: tuple[int, int]) -> NDArray[np.uint8]:
        """The mask (H, W, 1) of an image of this name and size (H, W), 255 where it is hidden.

        Raises BadSample for a file that cannot be read, ConfigError for one of another size and one
        of dark levels alone, such as 0 and 1, which would hide nothing.
        """
        path = self.files[name]
        try:
            levels = read_image(path, channels=1)
        except UNREADABLE as error:
            raise BadSample(str(path), f"cannot be read as a mask: {reason(error)}") from None
        require_one_size(self.root / name, size, path, levels.shape[:2], what="mask")
        lightest = int(levels.max())
        if 0 < lightest < _WHITE:
            raise ConfigError(
                f"{path}: the lightest level of this mask is {lightest} of 255; expected white, "
                f"{_WHITE} or more, where it is hidden"
            )
        return np.where(levels >= _WHITE, np.uint8(255), np.uint8(0))

    def require_sizes(self, source: ImageFiles) -> None:
        """Raise ConfigError for the first mask whose header tells another size than its image's.

        For some seconds; those that are left are found when they are used. Files that cannot be
        read are left to their use, too.
        """
        deadline = time.monotonic() + _SURVEY_SECONDS
        for name, path in self.files.items():
            if time.monotonic() > deadline:
                return
            try:
                size = source.pixels.size(self.root / name)[::-1]
                mask_size = header_size(path, channels=1)[::-1]
            except UNREADABLE:
                continue
            require_one_size_by_headers(self.root / name, size, path, mask_size, what="mask")


def with_masks(source: Any, masks: str | Path) -> ImageFiles:
    """A data set of image files whose items have their mask (size, size, 1) uint8 as `beside`.

    masks: directory with a PNG for each image, of the same name and size.
    The source itself stays what it is.

    Raises ConfigError for a source whose files cannot be told, for images without a mask, and for a
    mask of another size than its image.
    """
    if not isinstance(source, ImageFiles) or type(source).item is not ImageFiles.item:
        raise ConfigError(
            f"masks: {type(source).__name__} does not tell which file an image is of, or changes "
            "it; expected ldm.data.folder.ImageFolder or ImageList as the source, and other data "
            "sets around this one"
        )
    if source.fast_decode:
        raise ConfigError(
            "masks: with fast_decode: true of the source, an image is read at another size than "
            "its mask; expected fast_decode: false"
        )
    directory = existing_directory(masks, key="masks", expected="a PNG for each image")
    files = paired(directory, source.names, {".png"}, key="masks", what="mask")
    found = MaskFiles(source.root, files)
    found.require_sizes(source)
    changed = copy.copy(source)
    changed.beside = found
    return changed
