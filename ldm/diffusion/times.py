"""Times of a training step: functions of uniform random numbers.

Because the uniform numbers come from outside, which times an example gets can be made a property of
the example and the step alone (`ldm.diffusion.draws`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from ldm.diffusion.schedule import Schedule, VarianceExploding
from ldm.ranks import world_size

__all__ = [
    "LogNormal",
    "LogitNormal",
    "LossAware",
    "Stratified",
    "TimeSampler",
    "Uniform",
    "conditioning_times",
]


class TimeSampler(ABC):
    """Which times are trained how often."""

    @abstractmethod
    def sample(self, u: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """Times for uniform numbers u (B,) in [0, 1).

        Returns times (B,), int64 for a discrete schedule, and importance weights (B,): a loss times
        its weight has the expectation of the loss under uniform times.
        """

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Learn from the losses (B,) at times t (B,); most samplers do not."""
        return


@dataclass(frozen=True)
class Uniform(TimeSampler):
    """All times equally often."""

    def sample(self, u: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """Times (B,) and weights of 1."""
        return _time_at(u, schedule), torch.ones_like(u)


class Stratified(nn.Module, TimeSampler):
    """One uniform number in each of B equal strata: less variance from batch to batch.

    The stratum of an example is its place in the batch, so its time depends on the batch size.
    times: the sampler that gets these numbers. A module, so that what that one learns is saved.
    """

    times: TimeSampler

    def __init__(self, times: TimeSampler | None = None) -> None:
        """Stratify `times`, by default `Uniform`."""
        super().__init__()
        self.times = times or Uniform()

    def sample(self, u: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """Times (B,) and weights of the sampler inside."""
        place = torch.arange(len(u), device=u.device)
        return self.times.sample((place + u) / len(u), schedule)

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Pass the losses on."""
        self.times.update(t, losses)


@dataclass(frozen=True)
class LogitNormal(TimeSampler):
    """logit(t) ~ N(mean, std^2) on the unit interval (SD3, arXiv:2403.03206, section 3.1).

    Middle times more often; no importance weight, for that is the purpose. On a discrete schedule
    the unit interval is 0..T-1.
    """

    mean: float = 0.0
    std: float = 1.0

    def sample(self, u: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """Times (B,) and weights of 1."""
        position = torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))
        return _time_at(position, schedule), torch.ones_like(u)


@dataclass(frozen=True)
class LogNormal(TimeSampler):
    """log(sigma) ~ N(mean, std^2) for `VarianceExploding` (EDM, arXiv:2206.00364, table 1)."""

    mean: float = -1.2
    std: float = 1.2

    def sample(self, u: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """Noise levels (B,), cut to the schedule's, and weights of 1."""
        if not isinstance(schedule, VarianceExploding):
            raise ValueError(
                f"LogNormal draws noise levels, {type(schedule).__name__} has other times: "
                "use LogitNormal"
            )
        sigma = torch.exp(self.mean + self.std * torch.special.ndtri(u))
        return sigma.clamp(schedule.t_min, schedule.t_max), torch.ones_like(u)


class LossAware(nn.Module, TimeSampler):
    """Times in proportion to the root mean square of their last losses, unbiased by weights.

    Improved DDPM (arXiv:2102.09672), section 3.3: p_t ~ sqrt(E[L_t^2]) over the last `history`
    losses of each time, mixed with a little of the uniform distribution; the weight is 1 / (T p_t).
    Uniform until every time has its history. Learns in training mode only, from all ranks (each
    with the same batch size). The history is part of the state dict.
    """

    history: Tensor  # (T + 1, history); the last row takes what is not to be kept
    counts: Tensor  # (T,) losses seen, int64

    def __init__(
        self, num_timesteps: int, *, history: int = 10, uniform_probability: float = 0.001
    ) -> None:
        """Start without any history."""
        super().__init__()
        self.uniform_probability = uniform_probability
        self.register_buffer("history", torch.zeros(num_timesteps + 1, history))
        self.register_buffer("counts", torch.zeros(num_timesteps, dtype=torch.int64))

    def probabilities(self) -> Tensor:
        """Probability of each time, (T,), float32."""
        num_timesteps, length = len(self.counts), self.history.shape[1]
        spread = self.history[:-1].square().mean(dim=1).sqrt()
        learned = spread / spread.sum() * (1 - self.uniform_probability)
        learned = learned + self.uniform_probability / num_timesteps
        # chosen on the device: asking whether the history is full would wait for it
        return torch.where(self.counts.min() >= length, learned, 1 / num_timesteps)

    def sample(self, u: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """Integer times (B,) and weights 1 / (T p_t)."""
        if schedule.num_timesteps != len(self.counts):
            raise ValueError(
                f"LossAware has {len(self.counts)} times, the schedule "
                f"{schedule.num_timesteps}: set num_timesteps to the schedule's"
            )
        p = self.probabilities()
        cumulative = p.cumsum(0)
        t = torch.searchsorted(cumulative, u.to(p) * cumulative[-1], right=True)
        t = t.clamp(max=len(p) - 1)
        return t, 1 / (len(p) * p[t])

    @torch.no_grad()
    def update(self, t: Tensor, losses: Tensor) -> None:
        """Append each loss (B,) to the history of its time (B,), but for NaN and infinity.

        Does nothing in evaluation mode.
        """
        if not self.training:
            return
        t, losses, spare = _gathered(t), _gathered(losses.float()), len(self.counts)
        # chosen on the device, too: picking the finite ones would wait for it
        t, order = torch.where(losses.isfinite(), t, spare).sort(stable=True)
        place, length = torch.arange(len(t), device=t.device), self.history.shape[1]
        earlier = place - torch.searchsorted(t, t)  # losses of the same time before this one
        later = torch.searchsorted(t, t, right=True) - 1 - place
        known = t.clamp(max=spare - 1)
        slot = (self.counts[known] + earlier) % length
        row = torch.where(later < length, t, spare)
        self.history[row, slot] = losses[order]
        self.counts.index_add_(0, known, (t < spare).long())


def conditioning_times(num_timesteps: int, num_timesteps_cond: int) -> Tensor:
    """Time at which the condition is noised, for each time of the data: (T,) int64.

    The published shortened schedule for conditions: the first `num_timesteps_cond` times are spread
    evenly over 0..T-1, all later ones are T-1.
    """
    times = torch.full((num_timesteps,), num_timesteps - 1, dtype=torch.int64)
    spread = torch.linspace(0, num_timesteps - 1, num_timesteps_cond).round().long()
    times[:num_timesteps_cond] = spread
    return times


def _time_at(position: Tensor, schedule: Schedule) -> Tensor:
    """The time at a position (B,) in [0, 1) of the trained ones."""
    if schedule.num_timesteps is not None:
        # rounding may lift u T to T
        return (position * schedule.num_timesteps).long().clamp(max=schedule.num_timesteps - 1)
    # never exactly t_min, which may be clean data with an infinite signal-to-noise ratio
    position = position.clamp(min=2.0**-24)
    return schedule.t_min + (schedule.t_max - schedule.t_min) * position


def _gathered(values: Tensor) -> Tensor:
    """Values (B,) of all ranks, in rank order."""
    size = world_size()
    if size == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(size)]
    distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)
