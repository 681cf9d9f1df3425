"""Guidance in a part of the noise levels only (arXiv:2404.07724)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.moment import host_times
from ldm.diffusion.schedule import Schedule
from ldm.tensor import expand_to, sent_to
from ldm.types import Conditioning, Prediction

__all__ = ["Interval", "Unit"]

Unit = Literal["time", "sigma"]

ROUNDING = 1e-6  # relative: times are float32 on a device, and sums of steps in a grid


@dataclass(frozen=True)
class Interval:
    """One denoiser at levels in (low, high], another at all others, where guidance only harms.

    At high noise guidance takes away variety, at low noise it does next to nothing; without it a
    step costs one pass of B, not of 2B.

    inside: with guidance, such as `ClassifierFree`.  outside: without, such as what that wraps.
    unit: "time" is the fraction of time from clean data, 0, to noise, 1: t of a rectified flow,
    (t + 1) / T of times 0..T-1. "sigma" is the noise level sigma / alpha in units of the data, the
    paper's, which has the same meaning for every schedule; infinite in pure noise.

    In a sampler's run the choice is made without waiting for the device. Examples of different
    times, outside of a run, may need both denoisers. Raises ValueError unless 0 <= low <= high.
    """

    inside: Denoiser
    outside: Denoiser
    schedule: Schedule
    low: float = 0.0
    high: float = float("inf")
    unit: Unit = "time"

    def __post_init__(self) -> None:
        """Refuse limits in the wrong order, and an unknown unit."""
        if not 0 <= self.low <= self.high:
            raise ValueError(f"expected 0 <= low <= high, got {self.low} and {self.high}")
        if self.unit not in get_args(Unit):
            raise ValueError(f"unit is {self.unit!r}, expected one of {list(get_args(Unit))}")

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Prediction:
        """Prediction (x0, eps), both (B, C, H, W)."""
        within = self.contains(host_times(t))
        if within.all():
            return self.inside(x_t, t, cond)
        if not within.any():
            return self.outside(x_t, t, cond)
        chosen = expand_to(sent_to(torch.from_numpy(within), x_t.device), x_t)
        inside, outside = self.inside(x_t, t, cond), self.outside(x_t, t, cond)
        return Prediction(
            x0=inside.x0.where(chosen, outside.x0), eps=inside.eps.where(chosen, outside.eps)
        )

    def contains(self, times: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether each of some times lies in the interval; same shape."""
        level = self._level(times)
        above = level > self.low * (1 + ROUNDING)
        return np.asarray(above & (level <= self.high * (1 + ROUNDING)))

    def _level(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.unit == "time":
            start, end = self.schedule.t_clean, self.schedule.t_max
            return (times - start) / (end - start)
        alpha, sigma = self.schedule.exact(times)
        with np.errstate(divide="ignore"):  # pure noise
            return sigma / alpha
