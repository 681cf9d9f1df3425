"""Noise added before a step and taken away by it, algorithm 2 of EDM (arXiv:2206.00364)."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, log, sqrt

import numpy as np
from torch import Tensor

from ldm.ranges import Weight
from ldm.samplers.base import Evaluation, Nodes, Run, Sampler
from ldm.samplers.grid import Grid, Karras, OrUniform
from ldm.types import Prediction

__all__ = ["Churned"]


@dataclass(frozen=True)
class Churned(Sampler):
    """A sampler that first raises the noise level of a state, from k = sigma / alpha to k_hat.

    k_hat = (1 + gamma) k with gamma = min(s_churn / steps, sqrt(2) - 1), at most the schedule's
    highest level. Nothing is raised from pure noise.

    grid: equal steps of k^(1/7) by default, or of time where k is infinite.
    s_churn: noise added, over the whole run; 0 is none.
    s_tmin, s_tmax: noise levels k between which it is added, in units of the data.
    s_noise: multiplies the added noise.
    """

    grid: Grid = field(default_factory=lambda: OrUniform(Karras()))
    s_churn: Weight = 0.0
    s_tmin: Weight = 0.0
    s_tmax: Weight = inf
    s_noise: Weight = 1.0

    def __post_init__(self) -> None:
        """Refuse less noise than none."""
        for name in ("s_churn", "s_tmin", "s_tmax", "s_noise"):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"{name} is {value}, expected 0 or more")

    @property
    def adds_noise(self) -> bool:
        """With churn."""
        return self.s_churn > 0

    def evaluation(self, run: Run) -> Evaluation:
        """The denoiser sees the raised state; noise of step i is stream "step <i>"."""
        raised = self.raised(run)
        if not raised:
            return run.denoise
        nodes, place = _nodes(run, raised), {i: number for number, i in enumerate(raised)}

        def evaluate(x: Tensor, i: int) -> Prediction:
            if i not in place:
                return run.denoise(x, i)
            n = place[i]
            alpha, level, level_hat = nodes.alpha[n], run.sigma[i] / run.alpha[i], raised[i]
            noise = self.s_noise * alpha * sqrt(max(level_hat**2 - level**2, 0.0))
            x = x * (alpha / run.alpha[i])
            if noise:
                x.add_(run.normal(x, i), alpha=noise)
            return run.denoise_at(x, nodes, n)

        return evaluate

    def raised(self, run: Run) -> dict[int, float]:
        """Noise level k_hat of each node that is raised."""
        gamma = min(self.s_churn / run.count, sqrt(2) - 1)
        if not gamma:
            return {}
        (top_alpha,), (top_sigma,) = run.schedule.exact(np.array([run.schedule.t_max]))
        top = top_sigma / top_alpha if top_alpha else inf
        found = {}
        for i in range(run.count):
            level = run.sigma[i] / run.alpha[i] if run.alpha[i] else inf
            if self.s_tmin <= level <= self.s_tmax and level < top:
                found[i] = float(min(level * (1 + gamma), top))
        return found


def _nodes(run: Run, raised: dict[int, float]) -> Nodes:
    """Nodes at the raised levels."""
    return run.nodes_at([-log(level) for level in raised.values()])
