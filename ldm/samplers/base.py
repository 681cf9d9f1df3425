"""The one loop of all samplers, and what a sampler adds to it.

A sampler is a `Sampler` whose `rule` turns the prediction at one node of the time grid into the
state at the next. x is not an argument of a rule: a prediction (x0, eps) implies it, because
x_t = alpha x0 + sigma eps; so wrappers that change x_t before the network sees it, or the
prediction after, need no cooperation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.draws import Draws, normal_like
from ldm.diffusion.moment import Memory, moment_of_run
from ldm.diffusion.schedule import Schedule
from ldm.samplers.grid import Grid, Uniform
from ldm.types import Conditioning, Prediction

__all__ = ["Callback", "Evaluation", "Nodes", "Run", "Sampler", "Step", "StepRule"]


@dataclass(frozen=True, slots=True)
class Step:
    """A step just taken: number `index` of `count`, from `time` to `next_time`."""

    index: int
    count: int
    time: float
    next_time: float


# (step, state (B, C, H, W) after it, prediction it used) -> a state to go on from instead, or None
Callback = Callable[[Step, Tensor, Prediction], Tensor | None]

# (index i, prediction at node i) -> (state at node i + 1, the prediction it used)
StepRule = Callable[[int, Prediction], tuple[Tensor, Prediction]]

# (state (B, C, H, W) at node i, index i) -> prediction at node i
Evaluation = Callable[[Tensor, int], Prediction]


@dataclass(frozen=True)
class Nodes:
    """Times and their levels, Python numbers computed in float64, and each as a tensor (B,)."""

    times: list[float]
    alpha: list[float]
    sigma: list[float]
    tensors: tuple[Tensor, ...]

    @classmethod
    def of(cls, schedule: Schedule, times: NDArray[np.float64], like: Tensor) -> Nodes:
        """Nodes at times (N,), for states of the batch, type and device of `like`."""
        alpha, sigma = schedule.exact(times)
        table = schedule.tensor_of(times, like)[:, None].repeat(1, len(like))
        return cls(times.tolist(), alpha.tolist(), sigma.tolist(), table.unbind())


@dataclass(frozen=True)
class Run:
    """What a rule may know of its run: levels at each node, more evaluations, random numbers.

    nodes: 0..count.  start: the one that the run starts from.
    like: a state without channels or pixels, (B, 0): batch, type and device.
    memory: of wrappers, see `ldm.diffusion.moment`.
    """

    denoiser: Denoiser
    cond: Conditioning | None
    draws: Draws | None
    schedule: Schedule
    nodes: Nodes
    start: int
    like: Tensor
    memory: Memory = field(default_factory=Memory)

    @property
    def times(self) -> list[float]:
        """Time of each node."""
        return self.nodes.times

    @property
    def alpha(self) -> list[float]:
        """Signal level of each node."""
        return self.nodes.alpha

    @property
    def sigma(self) -> list[float]:
        """Noise level of each node."""
        return self.nodes.sigma

    @property
    def count(self) -> int:
        """Number of steps."""
        return len(self.times) - 1

    @property
    def level(self) -> list[float]:
        """Noise k = sigma / alpha at each node, in units of the data.

        Raises ValueError when the run starts in pure noise, where k is infinite.
        """
        if 0.0 in self.alpha:
            raise ValueError(
                "this sampler divides by alpha, which is 0 where the schedule is pure noise: use "
                "DDIM or any other but PLMS"
            )
        return [sigma / alpha for sigma, alpha in zip(self.sigma, self.alpha, strict=True)]

    def denoise(self, x: Tensor, node: int) -> Prediction:
        """Prediction for state x (B, C, H, W) at a node."""
        return self.denoise_at(x, self.nodes, node)

    def denoise_at(self, x: Tensor, nodes: Nodes, index: int) -> Prediction:
        """Prediction for state x (B, C, H, W) at one of other nodes."""
        with moment_of_run(nodes.times[index], self.memory):
            return self.denoiser(x, nodes.tensors[index], self.cond)

    def nodes_at(self, log_levels: Sequence[float]) -> Nodes:
        """Further nodes, at these values of log(alpha / sigma) or the nearest of the schedule."""
        times = self.schedule.time_of_log_snr(2 * np.asarray(log_levels, dtype=np.float64))
        return Nodes.of(self.schedule, times, self.like)

    def normal(self, like: Tensor, index: int) -> Tensor:
        """Standard normal noise of step `index`, stream "step <index>"; shape and type of `like`.

        Raises ValueError when the run has no draws.
        """
        if self.draws is None:
            raise ValueError("this sampler adds noise: pass draws, or choose its noiseless form")
        return normal_like(self.draws, like, f"step {index}")


@dataclass(frozen=True)
class Sampler(ABC):
    """From noise to data along a grid of times.

    grid: which times are visited (`ldm.samplers.grid`).
    """

    grid: Grid = field(default_factory=Uniform)

    @property
    def convergence_order(self) -> int:
        """The p of an error in proportion to steps^-p, on the probability-flow ODE.

        For a sampler that adds noise, that of its noiseless form; if that is no solution of the
        ODE, the order in which mean and variance of the samples converge.
        """
        return 1

    @property
    def adds_noise(self) -> bool:
        """Whether steps draw random numbers: the end then is no function of the start alone."""
        return False

    def evaluations(self, steps: int, *, ends_clean: bool = True) -> int:
        """Calls of the denoiser in this many steps.

        steps: of the run, which are the steps asked for unless the grid is a published one or the
        run starts in the middle.  ends_clean: whether the last step ends in clean data.
        """
        return steps

    def times(self, schedule: Schedule, steps: int) -> NDArray[np.float64]:
        """The times of the nodes, in the order they are visited: (steps + 1,)."""
        return self.grid(schedule, steps)

    def evaluation(self, run: Run) -> Evaluation:
        """How a node is evaluated: the denoiser sees the state as it is."""
        return run.denoise

    @abstractmethod
    def rule(self, run: Run) -> StepRule:
        """The step of one run: coefficients are computed here, once, and history is kept here."""

    @torch.no_grad()
    def sample(
        self,
        denoiser: Denoiser,
        x: Tensor,
        *,
        schedule: Schedule,
        steps: int,
        cond: Conditioning | None = None,
        draws: Draws | None = None,
        callback: Callback | None = None,
        start: int = 0,
    ) -> Tensor:
        """State at the last node of the grid, (B, C, H, W).

        x: (B, C, H, W), state at node `start`: noise of standard deviation `schedule.prior_std` at
        node 0, or data noised to that node's time for image-to-image.
        steps: number of steps that the grid is made for.
        draws: random numbers of samplers that add noise, streams "step 0", "step 1", ...
        callback: sees every step; a tensor that it returns replaces the state.
        """
        run = Run(
            denoiser=denoiser,
            cond=cond,
            draws=draws,
            schedule=schedule,
            nodes=Nodes.of(schedule, self.times(schedule, steps), x),
            start=start,
            like=x.new_empty(len(x), 0),
        )
        if not 0 <= start < run.count:
            raise ValueError(f"start is {start}, expected a node from 0 to {run.count - 1}")
        rule, evaluate = self.rule(run), self.evaluation(run)
        for index in range(start, run.count):
            x, used = rule(index, evaluate(x, index))
            if callback is not None:
                step = Step(index, run.count, run.times[index], run.times[index + 1])
                replaced = callback(step, x, used)
                x = x if replaced is None else replaced
        return x
