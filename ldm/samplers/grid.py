"""Time grids: which times a sampler visits.

A grid maps (schedule, steps) to times in float64, from t_max down; a sampler evaluates the network
at all but the last, which is where it ends: t_clean, so that no noise is left, except for the
published grids. All but those make exactly `steps` steps, for every number of them from 1 to T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ldm.diffusion.schedule import Schedule

__all__ = [
    "Explicit",
    "Grid",
    "Karras",
    "Leading",
    "LogSNR",
    "OrUniform",
    "PublishedQuadratic",
    "PublishedUniform",
    "Quadratic",
    "Uniform",
]

Array = NDArray[np.float64]


class Grid(Protocol):
    """Times (evaluations + 1,), falling, the last one where the sampler ends."""

    def __call__(self, schedule: Schedule, steps: int) -> Array:
        """The times; ValueError for steps that the schedule does not have."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Equal steps of time from t_max to clean data; whole times on a discrete schedule.

    The "trailing" spacing of arXiv:2305.08891: it starts at T-1, where the prior is, for any number
    of steps from 1 to T.
    """

    def __call__(self, schedule: Schedule, steps: int) -> Array:
        """Times (steps + 1,), distinct."""
        _check_steps(schedule, steps)
        return _whole(schedule, np.linspace(schedule.t_max, schedule.t_clean, steps + 1))


@dataclass(frozen=True)
class Leading:
    """Equal steps of time from 0 up, floor(i T / steps), then clean data; integer times only.

    It starts up to T / steps before T-1, where x is noise alone, although the state there is not:
    for comparisons with what was drawn in this way. `Uniform` has no such gap.
    """

    def __call__(self, schedule: Schedule, steps: int) -> Array:
        """Times (steps + 1,), distinct; ValueError for a continuous schedule."""
        total = _integer_times(schedule, steps, self)
        return np.append(np.floor(np.arange(steps) * total / steps)[::-1], schedule.t_clean)


@dataclass(frozen=True)
class Quadratic:
    """Steps of time that grow with the square of the time left, from t_max to clean data.

    Whole and distinct times on a discrete schedule, where 1 is the least step.
    """

    def __call__(self, schedule: Schedule, steps: int) -> Array:
        """Times (steps + 1,), distinct."""
        _check_steps(schedule, steps)
        fraction = np.square(np.arange(steps + 1) / steps)
        rising = (schedule.t_max - schedule.t_clean) * fraction
        if schedule.num_timesteps is not None:
            place = np.arange(steps + 1)
            # the largest of round(t_j) + i - j over j <= i: rounded, then a step of 1 or more
            rising = np.maximum.accumulate(np.round(rising) - place) + place
        return (rising + schedule.t_clean)[::-1].copy()


@dataclass(frozen=True)
class Karras:
    """Noise levels k = sigma / alpha equally spaced in k^(1 / rho), eq. (5) of arXiv:2206.00364.

    From the level at t_max to that at t_min, then clean data.
    """

    rho: float = 7.0

    def __call__(self, schedule: Schedule, steps: int) -> Array:
        """Times (steps + 1,), in between the trained ones; ValueError if t_max is pure noise."""
        _check_steps(schedule, steps)
        start, end = (np.exp(-log_snr / (2 * self.rho)) for log_snr in _log_snr_range(schedule))
        return _ending_clean(schedule, -2 * self.rho * np.log(np.linspace(start, end, steps)))


@dataclass(frozen=True)
class LogSNR:
    """Equal steps of log SNR from t_max to t_min, then clean data (arXiv:2211.01095)."""

    def __call__(self, schedule: Schedule, steps: int) -> Array:
        """Times (steps + 1,), in between the trained ones; ValueError if t_max is pure noise."""
        _check_steps(schedule, steps)
        return _ending_clean(schedule, np.linspace(*_log_snr_range(schedule), steps))


@dataclass(frozen=True)
class OrUniform:
    """A grid of noise levels where they are finite at both ends of a schedule, else `Uniform`.

    Rectified flow and schedules that end in pure noise have an end without a log SNR.
    """

    grid: Grid = field(default_factory=LogSNR)

    def __call__(self, schedule: Schedule, steps: int) -> Array:
        """Times (steps + 1,), distinct."""
        grid = self.grid if _finite_ends(schedule) else Uniform()
        return grid(schedule, steps)


@dataclass(frozen=True)
class Explicit:
    """These times, whatever the steps; falling, all within the schedule."""

    times: Sequence[float]

    def __call__(self, schedule: Schedule, steps: int) -> Array:
        """The times; ValueError if they do not fall or leave the schedule."""
        times = np.asarray(self.times, dtype=np.float64)
        inside = (times <= schedule.t_max) & (times >= schedule.t_clean)
        if len(times) < 2 or not inside.all() or not (np.diff(times) < 0).all():
            raise ValueError(
                f"expected falling times between {schedule.t_max} and {schedule.t_clean}, "
                f"at least two, got {self.times}"
            )
        return times


@dataclass(frozen=True)
class PublishedUniform:
    """The release's "uniform": every (T // steps)-th time, plus one; ends at time 0.

    It makes ceil(T / (T // steps)) evaluations and starts up to T // steps before T-1.
    """

    def __call__(self, schedule: Schedule, steps: int) -> Array:
        """Times, falling to 0; ValueError for steps whose first time would be T."""
        total = _integer_times(schedule, steps, self)
        # published: one is added to each time, the last of which may then be T itself
        return _to_first(schedule, np.arange(0.0, total, total // steps) + 1, self)


@dataclass(frozen=True)
class PublishedQuadratic:
    """The release's "quad": times spaced quadratically up to 0.8 T, plus one; ends at time 0.

    For many steps the first times repeat; a step between equal times changes nothing.
    """

    def __call__(self, schedule: Schedule, steps: int) -> Array:
        """Times (steps + 1,), falling to 0, not always distinct."""
        total = _integer_times(schedule, steps, self)
        roots = np.linspace(0.0, float(np.sqrt(0.8 * total)), steps)
        return _to_first(schedule, np.floor(np.square(roots)).astype(np.float64) + 1, self)


def _check_steps(schedule: Schedule, steps: int) -> None:
    total = schedule.num_timesteps
    if steps < 1 or (total is not None and steps > total):
        limit = "" if total is None else f" and at most T = {total}"
        raise ValueError(f"steps is {steps}, expected at least 1{limit}")


def _integer_times(schedule: Schedule, steps: int, grid: Grid) -> int:
    """The number T of a discrete schedule's times."""
    _check_steps(schedule, steps)
    if schedule.num_timesteps is None:
        raise ValueError(
            f"{type(grid).__name__} is for integer times, which {type(schedule).__name__} has not: "
            "use Uniform"
        )
    return schedule.num_timesteps


def _whole(schedule: Schedule, times: Array) -> Array:
    # spacing is at least 1, so no two times are rounded to the same one
    return times if schedule.num_timesteps is None else np.round(times)


def _finite_ends(schedule: Schedule) -> bool:
    """Whether there are signal and noise at both t_max and t_min."""
    alpha, sigma = schedule.exact(np.array([schedule.t_max, schedule.t_min]))
    return bool(alpha.all() and sigma.all())


def _log_snr_range(schedule: Schedule) -> tuple[float, float]:
    """Log SNR at t_max and at t_min."""
    alpha, sigma = schedule.exact(np.array([schedule.t_max, schedule.t_min]))
    if not _finite_ends(schedule):
        raise ValueError(
            f"{type(schedule).__name__} has no finite signal-to-noise ratio at both ends, which "
            "this grid divides evenly: use Uniform"
        )
    noisy, clean = 2 * np.log(alpha / sigma)
    return float(noisy), float(clean)


def _ending_clean(schedule: Schedule, log_snr: Array) -> Array:
    times = schedule.time_of_log_snr(log_snr)
    # both ends exactly, without the round-off of the inverse
    times[-1], times[0] = schedule.t_min, schedule.t_max
    return np.append(times, schedule.t_clean)


def _to_first(schedule: Schedule, rising: Array, grid: Grid) -> Array:
    if rising[-1] > schedule.t_max:
        raise ValueError(
            f"{type(grid).__name__} asks for time {rising[-1]:.0f} of a schedule that ends at "
            f"{schedule.t_max:.0f}: use another number of steps, or the grid Uniform"
        )
    # published: the last step ends at time 0, not at clean data, and leaves its noise
    return np.append(rising[::-1], 0.0)
