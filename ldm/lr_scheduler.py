"""Published learning-rate schedules: multipliers of the base rate, pure functions of the step.

Each is a callable `factor(step)` for `torch.optim.lr_scheduler.LambdaLR`; a step is one optimizer
update. They hold plain numbers only, so a checkpoint that contains them loads safely.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "LambdaLinearScheduler",
    "LambdaWarmUpCosineScheduler",
    "LambdaWarmUpCosineScheduler2",
]


@dataclass(frozen=True)
class LambdaWarmUpCosineScheduler:
    """Linear warm-up from `lr_start` to `lr_max`, then half a cosine down to `lr_min`.

    warm_up_steps, max_decay_steps: steps counted from the beginning; from `max_decay_steps` on the
    factor stays `lr_min`.  lr_*: factors on the base rate, despite their published names.
    verbosity_interval: accepted and ignored; the rate is logged by the trainer.
    """

    warm_up_steps: int
    lr_min: float
    lr_max: float
    lr_start: float
    max_decay_steps: int
    verbosity_interval: int = 0

    def __post_init__(self) -> None:
        if self.max_decay_steps <= self.warm_up_steps:
            raise ValueError(
                f"max_decay_steps={self.max_decay_steps} must exceed "
                f"warm_up_steps={self.warm_up_steps}: both count from step 0"
            )

    def __call__(self, step: int) -> float:
        """Factor on the base rate at this step."""
        if step < self.warm_up_steps:
            return _ramp(self.lr_start, self.lr_max, step, self.warm_up_steps)
        decay_steps = self.max_decay_steps - self.warm_up_steps
        return _half_cosine(self.lr_max, self.lr_min, step - self.warm_up_steps, decay_steps)


@dataclass(frozen=True)
class _Cycles(ABC):
    """Cycles one after the other, each with its own warm-up, peak and end.

    Every argument has one entry per cycle. warm_up_steps, cycle_lengths: steps; the warm-up counts
    from the start of its cycle and is part of it.  f_*: factors on the base rate.
    A step on the boundary belongs to the earlier cycle. After the last cycle the factor stays
    where that cycle ended; the release failed there.
    """

    warm_up_steps: Sequence[int]
    f_min: Sequence[float]
    f_max: Sequence[float]
    f_start: Sequence[float]
    cycle_lengths: Sequence[int]
    verbosity_interval: int = 0

    def __post_init__(self) -> None:
        names = ("warm_up_steps", "f_min", "f_max", "f_start", "cycle_lengths")
        lengths = {name: len(getattr(self, name)) for name in names}
        if len(set(lengths.values())) > 1 or not lengths["cycle_lengths"]:
            raise ValueError(f"a cycle needs one entry in each list, got lengths {lengths}")
        if min(self.cycle_lengths) < 1:
            raise ValueError(f"cycle_lengths: {list(self.cycle_lengths)}; expected 1 step or more")
        for name in names:  # plain tuples: a list of the configuration would not load safely
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def __call__(self, step: int) -> float:
        """Factor on the base rate at this step."""
        cycle, start = 0, 0
        while cycle < len(self.cycle_lengths) - 1 and step > start + self.cycle_lengths[cycle]:
            start += self.cycle_lengths[cycle]
            cycle += 1
        step = min(step - start, self.cycle_lengths[cycle])
        if step < self.warm_up_steps[cycle]:
            return _ramp(self.f_start[cycle], self.f_max[cycle], step, self.warm_up_steps[cycle])
        return self._after_warm_up(cycle, step)

    @abstractmethod
    def _after_warm_up(self, cycle: int, step: int) -> float:
        """Factor at a step that counts from the start of its cycle."""


class LambdaWarmUpCosineScheduler2(_Cycles):
    """Cycles of linear warm-up and half a cosine from `f_max` to `f_min`."""

    def _after_warm_up(self, cycle: int, step: int) -> float:
        warm_up = self.warm_up_steps[cycle]
        decay_steps = self.cycle_lengths[cycle] - warm_up
        return _half_cosine(self.f_max[cycle], self.f_min[cycle], step - warm_up, decay_steps)


class LambdaLinearScheduler(_Cycles):
    """Cycles of linear warm-up and a line from `f_max` to `f_min`."""

    def _after_warm_up(self, cycle: int, step: int) -> float:
        # published: the line starts at the beginning of the cycle, not at the end of its warm-up,
        # so the factor jumps there unless f_max equals f_min
        return _ramp(self.f_max[cycle], self.f_min[cycle], step, self.cycle_lengths[cycle])


def _ramp(start: float, end: float, step: int, steps: int) -> float:
    return start + (end - start) * step / steps


def _half_cosine(start: float, end: float, step: int, steps: int) -> float:
    progress = min(step / steps, 1.0) if steps else 1.0
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))
