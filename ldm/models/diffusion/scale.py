"""The scale of the latents, measured on what training begins with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset

from ldm.autoencoders.scaling import LatentMoments
from ldm.log import log

__all__ = ["first_batches", "measured_scale"]


def measured_scale(latents: Iterable[Tensor]) -> Tensor:
    """1 / standard deviation of latents (B, c, h, w) in any number of batches, over all ranks: 0-d.

    Section 4.3.2 and appendix G of the paper.
    """
    moments = LatentMoments()
    for z in latents:
        moments.update(z)
    moments.synchronize()
    scale = moments.scale()
    log.info("latents have standard deviation %.4g: scale_factor = %.4g", moments.std(), scale)
    return scale


def first_batches(loader: Any, count: int) -> Iterator[Mapping[str, Any]]:
    """The batches that training begins with, read beside its workers."""
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        yield from islice(loader, count)
        return
    for indices in islice(loader.batch_sampler, count):
        yield loader.collate_fn([loader.dataset[index] for index in indices])
