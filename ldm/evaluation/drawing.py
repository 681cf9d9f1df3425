"""Drawing many images with a model, in batches, each from its own seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ldm.tensor import to_uint8

__all__ = ["Drawer", "draw"]


class Drawer(Protocol):
    """A model that draws: `ldm.models.diffusion.ddpm.DDPM.sample`."""

    def sample(
        self, seeds: Sequence[int], batch: Mapping[str, Any] | None = None, **options: Any
    ) -> Tensor:
        """Images (B, C, H, W) in [-1, 1], one per seed."""
        ...


def draw(
    model: Drawer,
    seeds: Sequence[int],
    entries: Mapping[str, Sequence[Any] | Tensor] | None = None,
    *,
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> Iterator[NDArray[np.uint8]]:
    """Images (H, W, C) uint8, one per seed, in order; one batch is in memory at a time.

    entries: what each image is drawn from, as a batch of the data would hold it: captions or
        labels, as many as seeds; None for an unconditional model.
    progress: told the number of images finished, after every batch.
    options: of the model's `sample`.
    """
    for start in range(0, len(seeds), batch_size):
        part = slice(start, start + batch_size)
        given = None if entries is None else {key: value[part] for key, value in entries.items()}
        images = to_uint8(model.sample(seeds[part], given, **options)).cpu().numpy()
        yield from images
        if progress is not None:
            progress(len(images))
