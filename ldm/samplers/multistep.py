"""Steps that combine the predictions of several nodes, in lambda = log(alpha / sigma).

In lambda the exact solution of the probability-flow ODE from t to s is (arXiv:2211.01095)

    x_s = sigma_s / sigma_t x_t + alpha_s int_0^1 h exp(-h (1 - r)) x0(lambda_t + r h) dr,

with h = lambda_s - lambda_t, so all there is to choose is a curve through the predictions x0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import expm1, inf, isinf, log

from torch import Tensor

from ldm.samplers.base import Run, StepRule
from ldm.types import Prediction

__all__ = [
    "Update",
    "curve_weights",
    "log_levels",
    "moments",
    "multistep_rule",
    "offsets",
    "step_size",
]


@dataclass(frozen=True, slots=True)
class Update:
    """One step, as weights of x0 at nodes i, i - 1, ..., of eps at node i, and of fresh noise."""

    x0: Sequence[float]
    eps: float
    noise: float = 0.0


def multistep_rule(run: Run, updates: Sequence[Update]) -> StepRule:
    """The rule that makes these steps, one for each of the run's; keeps what x0 they need.

    An update weighs no node before the one that the run starts from.
    """
    kept = max(m for update in updates for m, weight in enumerate(update.x0) if weight or not m)
    history: list[Tensor] = []

    def step(i: int, prediction: Prediction) -> tuple[Tensor, Prediction]:
        update = updates[i]
        x = (prediction.x0 * update.x0[0]).add_(prediction.eps, alpha=update.eps)
        for weight, older in zip(update.x0[1:], history, strict=False):
            if weight:
                x.add_(older, alpha=weight)
        if update.noise:
            x.add_(run.normal(x, i), alpha=update.noise)
        history.insert(0, prediction.x0)
        del history[kept:]
        return x, prediction

    return step


def log_levels(run: Run) -> list[float]:
    """Lambda at every node: -inf for pure noise, inf for clean data."""
    return [
        log(alpha / sigma) if alpha and sigma else (inf if alpha else -inf)
        for alpha, sigma in zip(run.alpha, run.sigma, strict=True)
    ]


def step_size(levels: Sequence[float], i: int) -> float:
    """The step h from node i in lambda; infinite from pure noise and to clean data."""
    return levels[i + 1] - levels[i]


def offsets(run: Run, levels: Sequence[float], i: int, most: int) -> list[float]:
    """Where the nodes before i lie, in steps h from node i: falling, all negative, newest first.

    At most `most`, none from before the run, and none at all where they say nothing of the slope:
    if the step is infinite or 0, and beyond a repeated time or pure noise.
    """
    h = step_size(levels, i)
    found: list[float] = []
    if not h or isinf(h):
        return found
    for node in range(i - 1, max(run.start, i - most) - 1, -1):
        if isinf(levels[node]) or levels[node] == levels[node + 1]:
            break
        found.append((levels[node] - levels[i]) / h)
    return found


def moments(rate: float, count: int) -> list[float]:
    """M_n = int_0^1 c exp(-c (1 - r)) r^n dr for n = 0..count-1, with c = rate.

    M_0 = 1 - exp(-c), M_n = 1 - n M_{n-1} / c; a series where that would cancel.
    """
    if rate > 0.5:
        found = [-expm1(-rate)]
        for n in range(1, count):
            found.append(1 - n * found[-1] / rate)
        return found
    found = []
    for n in range(count):
        # sum over k of n! (-c)^k c / (n + k + 1)!
        term = total = rate / (n + 1)
        for k in range(1, 16):
            term *= -rate / (n + k + 1)
            total += term
        found.append(total)
    return found


def curve_weights(places: Sequence[float], rate: float) -> list[float]:
    """Weights g with sum_m g_m places_m^n = M_n for n = 1..N, of N places.

    So that sum_m g_m (x0(places_m) - x0(0)) integrates the polynomial through all of them and 0
    exactly, but for x0(0) itself, which has the weight M_0.
    """
    wanted, weights = moments(rate, len(places) + 1), []
    for place in places:
        # the polynomial that is 1 at this place and 0 at 0 and at the others, lowest power first
        polynomial = [0.0, 1 / place]
        for other in places:
            if other != place:
                shifted = [0.0, *polynomial]
                polynomial = [
                    (above - other * below) / (place - other)
                    for above, below in zip(shifted, [*polynomial, 0.0], strict=True)
                ]
        weights.append(sum(c * moment for c, moment in zip(polynomial, wanted, strict=True)))
    return weights
