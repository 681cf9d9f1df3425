"""Latents of a set of images, as a second stage will meet them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ldm.config import ConfigError, did_you_mean, instantiate_from_config, load
from ldm.data.folder import ImageFolder
from ldm.data.pixels import PixelFormat
from ldm.evaluation.first_stage import diffused_latents
from ldm.tensor import to_image_tensor

__all__ = ["image_set", "set_latents"]


def image_set(
    source: str, *, pixels: PixelFormat, size: int | None = None, default_size: int = 256
) -> Any:
    """The data set of a directory, or the training set of a configuration.

    pixels, size: of the images of a directory; the side in pixels is `default_size` where none is
        given.

    Raises ConfigError for a size beside a configuration, which says its own, and for a
    configuration without a training set.
    """
    if Path(source).is_dir():
        return ImageFolder(
            source,
            size or default_size,
            split="all",
            channels=pixels.channels,
            dtype=pixels.dtype,
            value_range=pixels.value_range,
        )
    if size is not None:
        raise ConfigError(f"--size {size}: the configuration {source} says the size")
    config = load([source])
    if config.get("data") is None:
        raise ConfigError(f"{source}: there is no `data:` block in it")
    module = instantiate_from_config(config["data"], path="data")
    module.setup()
    if "train" not in module.datasets:
        raise ConfigError(f"{source}: data.params has no `train:` set")
    return module.datasets["train"]


@torch.no_grad()
def set_latents(
    first_stage: Any,
    data: Any,
    *,
    indices: Sequence[int],
    source: str,
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """Unscaled latents (B, c, h, w) of some images of a data set, batch by batch.

    The noise of a posterior's sample depends on the image's index alone.
    source: what errors call the data set.

    Raises ConfigError for samples without the key of the first stage's images, and for images that
    it does not take.
    """
    key = getattr(first_stage, "image_key", "image")
    sample = data[indices[0]]
    if key not in sample:
        near = did_you_mean(key, sample)
        raise ConfigError(f"{source}: has no {key!r} but {', '.join(sorted(sample))}{near}")

    def images(samples: Sequence[dict[str, Any]]) -> Tensor:
        return torch.from_numpy(np.stack([np.asarray(each[key]) for each in samples]))

    loader: Any = DataLoader(
        Subset(data, indices),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=images,
    )
    for start, batch in zip(range(0, len(indices), batch_size), loader, strict=True):
        given = to_image_tensor(batch.to(device))
        try:
            z = diffused_latents(first_stage, given, indices[start : start + len(batch)])
        except ValueError as error:
            raise ConfigError(f"{source}: {error}") from error
        yield z
