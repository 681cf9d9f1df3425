"""Validation loss of a diffusion model: by time, with and without the weight average."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ldm.diffusion.schedule import Schedule
from ldm.ranks import mean_over_ranks
from ldm.types import LossTerms

__all__ = ["LossByTime"]


class LossByTime:
    """Means of loss terms over a validation set, as a whole and per part of the time axis.

    buckets: number of these parts.  by_time: names of the terms that are split into them.
    Sums and counts are kept, so the means depend neither on batch sizes nor on ranks.
    """

    def __init__(
        self, schedule: Schedule, buckets: int = 10, by_time: Sequence[str] = ("loss_simple",)
    ) -> None:
        self.by_time = by_time
        self.start = schedule.t_min
        self.length = schedule.t_max - schedule.t_min + (schedule.num_timesteps is not None)
        self.buckets = buckets
        self.is_discrete = schedule.num_timesteps is not None
        self._sums: dict[str, Tensor] = {}

    def update(self, t: Tensor, terms: LossTerms, suffix: str = "") -> None:
        """Count the terms (B,) at times t (B,) under their names plus a suffix."""
        index = ((t - self.start) * self.buckets / self.length).long().clamp(0, self.buckets - 1)
        for name, values in {"loss": terms.total, **terms.parts}.items():
            key = name + suffix
            table = self._sums.setdefault(
                key, values.new_zeros(2, self.buckets, dtype=torch.double)
            )
            table[0].index_add_(0, index, values.detach().double())
            table[1].index_add_(0, index, torch.ones_like(values, dtype=torch.double))

    def compute(self) -> dict[str, Tensor]:
        """Means over all ranks by name, 0-d; those of `by_time` also as `NAME_t000-099`, ...

        Starts anew. Every rank must have counted the same names.
        """
        if not self._sums:
            return {}
        tables = mean_over_ranks(torch.stack(list(self._sums.values())))
        means = {}
        for key, (total, count) in zip(self._sums, tables.unbind(), strict=True):
            means[key] = (total.sum() / count.sum()).float()
            name, suffix = (key.removesuffix("_ema"), "_ema" if key.endswith("_ema") else "")
            if name in self.by_time:
                by_bucket = (total / count).float()
                for label, mean, number in zip(
                    self._labels(), by_bucket, count.tolist(), strict=True
                ):
                    if number:
                        means[f"{name}_{label}{suffix}"] = mean
        self._sums = {}
        return means

    def _labels(self) -> list[str]:
        edges = [self.start + self.length * i / self.buckets for i in range(self.buckets + 1)]
        pairs = pairwise(edges)
        if self.is_discrete:
            return [f"t{round(low):03d}-{round(high) - 1:03d}" for low, high in pairs]
        return [f"t{low:.2g}-{high:.2g}" for low, high in pairs]
