"""DPM-Solver++ (arXiv:2211.01095): exponential integrators in log SNR, on the prediction of x0."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp, isinf, log, sqrt
from typing import Literal

from torch import Tensor

from ldm.ranges import Weight
from ldm.samplers.base import Run, Sampler, StepRule
from ldm.samplers.grid import Grid, OrUniform
from ldm.samplers.multistep import (
    Update,
    curve_weights,
    log_levels,
    multistep_rule,
    offsets,
    step_size,
)
from ldm.types import Prediction

__all__ = ["DPMSolver", "DPMSolverSDE", "DPMSolverSinglestep"]

# how the slope of x0 is weighed where two predictions are known
Slope = Literal["midpoint", "heun"]


@dataclass(frozen=True)
class DPMSolver(Sampler):
    """DPM-Solver++(2M), algorithm 2 of the paper: second order with one evaluation per step.

    With lambda = log(alpha / sigma), h the step in lambda and h' the one before,

        x_s = alpha_s x0 + sigma_s eps + alpha_s (1 - exp(-h)) h / (2 h') (x0 - x0'),

    a DDIM step and a correction by the previous prediction x0'. The first step, and one with h
    infinite, is a DDIM step; the last one is an order lower than the others.

    grid: equal steps of log SNR by default; the spacing matters more than the order.
    order: 2, or 3 for a parabola through the last three predictions, (3M).
    """

    grid: Grid = field(default_factory=OrUniform)
    order: Literal[2, 3] = 2

    def __post_init__(self) -> None:
        """Refuse another order."""
        _check_order(self.order)

    @property
    def convergence_order(self) -> int:
        """That of the solver."""
        return self.order

    def rule(self, run: Run) -> StepRule:
        """Coefficients of every step; keeps the last x0."""
        slope: Slope = "midpoint" if self.order == 2 else "heun"
        return multistep_rule(run, _updates(run, self.order, slope))


@dataclass(frozen=True)
class DPMSolverSDE(Sampler):
    """SDE-DPM-Solver++(2M): `DPMSolver` for the reverse SDE, one evaluation per step.

    With H = (1 + eta) h, between two predictions

        x_s = alpha_s x0 + sigma_s exp(-eta h) eps + sigma_s sqrt(1 - exp(-2 eta h)) z
              + alpha_s c h / h' (x0 - x0'),  c = (1 - exp(-H)) / 2 or 1 - (1 - exp(-H)) / H,

    which is the paper's for eta = 1 and `DPMSolver` for eta = 0.

    eta: noise put back; 0 is none, 1 the diffusion's own.  temperature: multiplies that noise.
    order: 2, or 3 for a parabola through the last three predictions, (3M).
    slope: c of a second-order step: "midpoint", the first, or "heun", the second.
    """

    grid: Grid = field(default_factory=OrUniform)
    eta: Weight = 1.0
    order: Literal[2, 3] = 2
    slope: Slope = "midpoint"
    temperature: Weight = 1.0

    def __post_init__(self) -> None:
        """Refuse another order or slope, and less noise than none."""
        _check_order(self.order)
        if self.slope not in ("midpoint", "heun"):
            raise ValueError(f"slope is {self.slope!r}, expected 'midpoint' or 'heun'")
        if self.eta < 0:
            raise ValueError(f"eta is {self.eta}, expected 0 or more")

    @property
    def adds_noise(self) -> bool:
        """With an eta."""
        return self.eta > 0

    @property
    def convergence_order(self) -> int:
        """That of the solver without noise."""
        return self.order

    def rule(self, run: Run) -> StepRule:
        """Coefficients of every step; keeps the last x0."""
        slope: Slope = self.slope if self.order == 2 else "heun"
        updates = _updates(run, self.order, slope, eta=self.eta, temperature=self.temperature)
        return multistep_rule(run, updates)


@dataclass(frozen=True)
class DPMSolverSinglestep(Sampler):
    """DPM-Solver++(2S), algorithm 1 of the paper: second order, without a memory.

    A DDIM step to half of the step in lambda, where x0 is predicted again, and a whole step with
    that prediction. Two evaluations per step, one for a last step to clean data. From pure noise,
    lambda = -inf, the half is one of alpha / sigma.
    """

    grid: Grid = field(default_factory=OrUniform)

    @property
    def convergence_order(self) -> int:
        """Second."""
        return 2

    def evaluations(self, steps: int, *, ends_clean: bool = True) -> int:
        """2 steps, less one if the last ends in clean data."""
        return 2 * steps - ends_clean

    def rule(self, run: Run) -> StepRule:
        """A step to the middle, then one with what is predicted there."""
        alpha, sigma, levels = run.alpha, run.sigma, log_levels(run)
        halves = [i for i in range(run.count) if sigma[i + 1]]
        middle = run.nodes_at([_middle(levels, i) for i in halves])
        place = {i: number for number, i in enumerate(halves)}
        correction = [
            _singlestep_correction(run, levels, i, log(middle.alpha[m] / middle.sigma[m]))
            for m, i in enumerate(halves)
        ]

        def step(i: int, prediction: Prediction) -> tuple[Tensor, Prediction]:
            x0, eps = prediction.x0, prediction.eps
            x = (x0 * alpha[i + 1]).add_(eps, alpha=sigma[i + 1])
            if not sigma[i + 1]:
                return x, prediction
            m = place[i]
            inside = (x0 * middle.alpha[m]).add_(eps, alpha=middle.sigma[m])
            ahead = run.denoise_at(inside, middle, m)
            x.add_(ahead.x0 - x0, alpha=correction[m])
            return x, prediction

        return step


def _middle(levels: list[float], i: int) -> float:
    """Lambda half-way through the step from node i, or at half of alpha / sigma from pure noise."""
    here, there = levels[i], levels[i + 1]
    return there - log(2) if isinf(here) else (here + there) / 2


def _singlestep_correction(run: Run, levels: list[float], i: int, middle: float) -> float:
    """alpha_s (1 - exp(-h)) / (2 r), the weight of the change of x0 from node i to lambda `middle`.

    r: how far that is of the step in lambda, or of alpha / sigma from pure noise.
    """
    h = step_size(levels, i)
    if not h:  # a repeated time changes nothing
        return 0.0
    r = (middle - levels[i]) / h if run.alpha[i] else exp(middle - levels[i + 1])
    return run.alpha[i + 1] * (1 - _decay(run, i)) / (2 * r)


def _updates(
    run: Run, order: int, slope: Slope, *, eta: float = 0.0, temperature: float = 1.0
) -> list[Update]:
    """The steps of DPM-Solver++(2M) and (3M), with noise for eta > 0."""
    levels, updates = log_levels(run), []
    for i in range(run.count):
        decay, alpha, sigma = _decay(run, i), run.alpha[i + 1], run.sigma[i + 1]
        lower = i == run.count - 1  # one step of an order less costs no order
        places = offsets(run, levels, i, order - 1 - lower)
        if len(places) == 1 and slope == "midpoint":
            older = [(1 - decay ** (1 + eta)) / 2 / places[0]]
        else:
            older = curve_weights(places, (1 + eta) * step_size(levels, i)) if places else []
        updates.append(
            Update(
                x0=[alpha * (1 - sum(older)), *(alpha * weight for weight in older)],
                eps=sigma * decay**eta,
                noise=temperature * sigma * sqrt(max(1 - decay ** (2 * eta), 0.0)),
            )
        )
    return updates


def _decay(run: Run, i: int) -> float:
    """exp(-h) of the step from node i: 0 from pure noise and to clean data."""
    return run.alpha[i] * run.sigma[i + 1] / (run.sigma[i] * run.alpha[i + 1])


def _check_order(order: int) -> None:
    if order not in (2, 3):
        raise ValueError(f"order is {order}, expected 2 or 3")
