"""The scale of the latents: given, read from a file, or measured on what training begins with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ldm.autoencoders.scaling import LatentMoments
from ldm.autoencoders.statistics import LatentStatistics
from ldm.config import ConfigError
from ldm.io.digest import sha256_of
from ldm.log import log

__all__ = ["first_batches", "given_scale", "measured_scale", "require_scale", "require_source"]


def given_scale(config: Mapping[str, Any]) -> float | Tensor:
    """What the latents of a configured model are multiplied by, before anything is measured.

    A tensor (0-d) belongs into the state dict: 1 with `scale_by_std`, until it is measured; with
    `latent_stats` 1 / std of that file. NaN stands for the latter where the configuration names no
    checkpoint of the first stage: then a checkpoint of the whole model brings the scale.

    Raises ConfigError for a factor that is not positive, for two of these keys, and for a file of
    statistics that is missing, damaged, or of another checkpoint than the first stage's.
    """
    factor = float(config.get("scale_factor", 1.0))
    is_measured, stats = config.get("scale_by_std", False), config.get("latent_stats")
    if factor <= 0:
        raise ConfigError(f"scale_factor: {factor}; expected more than 0")
    if stats and is_measured:
        raise ConfigError(f"latent_stats: {stats}, but scale_by_std measures the scale; give one")
    if stats and "scale_factor" in config:
        raise ConfigError(f"latent_stats: {stats}, but scale_factor is {factor:g}; give one")
    if is_measured and factor != 1.0:
        raise ConfigError(f"scale_factor: {factor}, but scale_by_std measures it; give one")
    if stats:
        return torch.tensor(_recorded_scale(stats, config.get("first_stage_config")))
    return torch.tensor(factor) if is_measured else factor


def require_scale(scale: float | Tensor) -> None:
    """Raise ConfigError where a training would begin without a scale, see `given_scale`."""
    if math.isnan(scale):
        raise ConfigError(
            "latent_stats: it is of a checkpoint of the first stage, but "
            "first_stage_config.params.ckpt_path names none"
        )


def require_source(config: Mapping[str, Any]) -> None:
    """The same of a configured model, by its parameters alone: before it has any numbers."""
    is_restored = config.get("ckpt_path") and not config.get("load_only_unet")
    has_source = is_restored or _checkpoint_of(config.get("first_stage_config"))
    if config.get("latent_stats") and not has_source:
        require_scale(math.nan)


def _checkpoint_of(first_stage: object) -> str | None:
    params = first_stage.get("params") if isinstance(first_stage, Mapping) else None
    return (params or {}).get("ckpt_path")


def _recorded_scale(path: str, first_stage: object) -> float:
    checkpoint = _checkpoint_of(first_stage)
    if not checkpoint:
        return math.nan
    if not Path(path).is_file():
        raise ConfigError(
            f"latent_stats: there is no file {path}; scripts/latent_stats.py makes it"
        )
    try:
        stats = LatentStatistics.read(path)
    except ValueError as error:
        raise ConfigError(f"latent_stats: {path}: {error}") from error
    found = sha256_of(checkpoint)
    if stats.sha256 != found:
        raise ConfigError(
            f"latent_stats: {path} is of {stats.checkpoint} (sha256 {stats.sha256[:12]}...), but "
            f"first_stage_config.params.ckpt_path is {checkpoint} (sha256 {found[:12]}...)"
        )
    return stats.scale_factor


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
