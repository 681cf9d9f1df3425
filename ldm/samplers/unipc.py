"""UniPC (arXiv:2302.04867): a predictor and a corrector of any order, in log SNR."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isinf
from typing import Literal

from ldm.ranges import Positive
from ldm.samplers.base import Run, Sampler, StepRule
from ldm.samplers.grid import Grid, OrUniform
from ldm.samplers.multistep import (
    Update,
    curve_weights,
    log_levels,
    moments,
    multistep_rule,
    offsets,
    step_size,
)

__all__ = ["UniPC"]


@dataclass(frozen=True)
class UniPC(Sampler):
    """UniPC-p for the prediction of x0, with one evaluation per step.

    UniP-p predicts the state at the next node from the last p predictions. Where that state has
    been evaluated, UniC-p corrects it with the new prediction, and the next step goes on from the
    corrected one. A run begins with steps of order 1, which limits the order of the whole to 3.

    order: p, 1 to 3; 2 where guidance is strong.
    variant: B(h) of the paper in steps that know one slope, "B1" for h, "B2" for 1 - exp(-h).
    corrector: without it, p is the order.
    """

    grid: Grid = field(default_factory=OrUniform)
    order: Positive = 2
    variant: Literal["B1", "B2"] = "B2"
    corrector: bool = True

    def __post_init__(self) -> None:
        """Refuse other orders and variants."""
        if not 1 <= self.order <= 3:
            raise ValueError(f"order is {self.order}, expected 1 to 3")
        if self.variant not in ("B1", "B2"):
            raise ValueError(f"variant is {self.variant!r}, expected 'B1' or 'B2'")

    @property
    def convergence_order(self) -> int:
        """One more with the corrector, as far as the first steps allow."""
        return min(self.order + self.corrector, 3)

    def rule(self, run: Run) -> StepRule:
        """Coefficients of every step, the correction of the last one included."""
        levels, updates = log_levels(run), []
        for i in range(run.count):
            alpha, sigma = run.alpha[i + 1], run.sigma[i + 1]
            weights = [alpha] + self.order * [0.0]
            predictor = self._differences(offsets(run, levels, i, self.order - 1), levels, i)
            _add(weights, predictor, alpha, base=0)
            if self.corrector and i > run.start and sigma:
                # x_s is linear in the corrected x_t, so its correction is scaled as x_t is
                scale = sigma / run.sigma[i] * run.alpha[i]
                _add(weights, self._correction(run, levels, i), scale, base=1)
            updates.append(Update(x0=weights, eps=sigma))
        return multistep_rule(run, updates)

    def _correction(self, run: Run, levels: list[float], i: int) -> dict[int, float]:
        """What UniC adds to the state at node i: weights of x0 at node i - m less x0 at i - 1."""
        before = offsets(run, levels, i - 1, self.order - 1)
        predicted = self._differences(before, levels, i - 1)
        corrected = self._differences([*before, 1.0], levels, i - 1)
        if not corrected:
            return {}
        ahead = corrected.pop(len(before) + 1)
        change = {m + 1: weight - predicted[m] for m, weight in corrected.items()}
        return {0: ahead, **change}

    def _differences(self, places: list[float], levels: list[float], base: int) -> dict[int, float]:
        """Weights of x0(place) - x0(base), by 1 + the index of the place, in units of alpha_s."""
        h = step_size(levels, base)
        if not h or not places:
            return {}
        if len(places) > 1:  # as many slopes as orders: B(h) cancels
            weights = curve_weights(places, h)
        else:
            b = h if self.variant == "B1" and not isinf(h) else moments(h, 1)[0]
            weights = [b / 2 / places[0]]
        return {1 + index: weight for index, weight in enumerate(weights)}


def _add(weights: list[float], differences: dict[int, float], scale: float, *, base: int) -> None:
    """Add weights of x0 at node i - m less x0 at node i - base."""
    for m, weight in differences.items():
        weights[m] += scale * weight
        weights[base] -= scale * weight
