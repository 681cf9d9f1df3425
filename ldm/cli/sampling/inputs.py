"""Images and masks that a sampling script is given, at sizes that the model takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm.cli.sampling.sizes import cells_of, image_channels_of
from ldm.config import ConfigError
from ldm.data.decoding import UNREADABLE, read_image, reason, upright_size
from ldm.data.transforms import Interpolation, crop, resize
from ldm.evaluation.pictures import image_files
from ldm.io.digest import sha256_of
from ldm.log import log
from ldm.tensor import to_image_tensor

__all__ = ["fitted", "fitting_size", "image_items", "images_of", "masks_of", "unchanged"]

Size = Sequence[int]


def image_items(words: Sequence[str], size: Size | None, model: Any) -> list[dict[str, Any]]:
    """An item of each image file: `init` its path, `init_sha256`, and `size` that it is drawn at.

    words: files, and directories of them.  size: height and width in pixels; by default each
    image's own, rounded down to what the model takes, which is told.
    Raises ConfigError for a name that is no image, and one that is too small.
    """
    paths = image_files(words)
    items = []
    for path in paths:
        drawn = list(size) if size is not None else _own_size(path, cells_of(model))
        items.append({"init": str(path), "init_sha256": sha256_of(path), "size": drawn})
    return items


def _own_size(path: Path, cells: int) -> list[int]:
    try:
        height, width = upright_size(path)
    except UNREADABLE as error:
        raise ConfigError(f"{path}: cannot be read: {reason(error)}") from error
    return fitting_size(path, height, width, cells)


def fitting_size(path: Path, height: int, width: int, cells: int) -> list[int]:
    """A file's height and width, rounded down to multiples of `cells` pixels, which is told.

    Raises ConfigError for one that is too small.
    """
    size = [side // cells * cells for side in (height, width)]
    if 0 in size:
        raise ConfigError(f"{path}: {height} x {width} pixels, expected {cells} x {cells} or more")
    if size != [height, width]:
        log.info("%s: %d x %d pixels, drawn as %d x %d", path, height, width, *size)
    return size


def images_of(items: Sequence[dict[str, Any]], model: Any) -> Tensor:
    """The images of items, (B, C, H, W) in [-1, 1], of as many channels as the model's have.

    Raises ConfigError for one that has changed.
    """
    channels = image_channels_of(model)
    return to_image_tensor(torch.from_numpy(np.stack([_image(item, channels) for item in items])))


def _image(item: dict[str, Any], channels: int) -> NDArray[Any]:
    return fitted(_read(item, "init", channels), *item["size"])


def _read(item: dict[str, Any], name: str, channels: int) -> NDArray[Any]:
    path = unchanged(item, name)
    try:
        return read_image(path, channels)
    except UNREADABLE as error:
        raise ConfigError(f"{path}: cannot be read: {reason(error)}") from error


def unchanged(item: dict[str, Any], name: str) -> Path:
    """The file under an item's `name`; ConfigError unless its SHA-256 is still that of the item."""
    path = Path(item[name])
    if sha256_of(path) != item[f"{name}_sha256"]:
        raise ConfigError(f"{path}: is not the file any more that it was (SHA-256)")
    return path


def fitted(
    image: NDArray[Any], height: int, width: int, interpolation: Interpolation = "bicubic"
) -> NDArray[Any]:
    """The image (H, W, C) at a size: resized until it covers that, then its centre."""
    factor = max(height / image.shape[0], width / image.shape[1])
    if factor != 1:
        covering = [round(side * factor) for side in image.shape[:2]]
        image = resize(image, covering[0], covering[1], interpolation)
    return crop(image, height, width)


def masks_of(items: Sequence[dict[str, Any]]) -> Tensor:
    """The masks of items, (B, 1, H, W): 1 where a pixel is known, 0 where it is white in the file.

    A mask of another size than its image is resized to it without new levels.
    """
    masks = []
    for item in items:
        mask, image = _read(item, "mask", 1), _read(item, "init", 1)
        if mask.shape != image.shape:
            height, width = image.shape[:2]
            mask = resize(mask, height, width, "nearest")
        masks.append(fitted(mask, *item["size"])[..., 0] < 128)
    return torch.from_numpy(np.stack(masks))[:, None].float()
