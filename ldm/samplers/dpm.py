"""DPM-Solver++ (arXiv:2211.01095): exponential integrators on the prediction of x0."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log

from torch import Tensor

from ldm.samplers.base import Run, Sampler, StepRule
from ldm.samplers.grid import Grid, LogSNR
from ldm.types import Prediction

__all__ = ["DPMSolver"]


@dataclass(frozen=True)
class DPMSolver(Sampler):
    """DPM-Solver++(2M), algorithm 2 of the paper: second order with one evaluation per step.

    With lambda = log(alpha / sigma), h the step in lambda and h' the one before,

        x_s = alpha_s x0 + sigma_s eps + alpha_s (1 - exp(-h)) h / (2 h') (x0 - x0'),

    a DDIM step and a correction by the previous prediction x0'. The first step and the last, which
    may have h infinite, are DDIM steps.

    grid: equal steps of log SNR by default; the spacing matters more than the order.
    """

    grid: Grid = field(default_factory=LogSNR)

    def rule(self, run: Run) -> StepRule:
        """Coefficients of every step; keeps the last x0."""
        alpha, sigma = run.alpha, run.sigma
        correction = [
            _correction(run, i) if run.start < i < run.count - 1 else 0.0 for i in range(run.count)
        ]
        previous: Tensor | None = None

        def step(i: int, prediction: Prediction) -> tuple[Tensor, Prediction]:
            nonlocal previous
            x = (prediction.x0 * (alpha[i + 1] + correction[i])).add_(
                prediction.eps, alpha=sigma[i + 1]
            )
            if correction[i] and previous is not None:
                x.add_(previous, alpha=-correction[i])
            previous = prediction.x0
            return x, prediction

        return step


def _correction(run: Run, i: int) -> float:
    """alpha_s (1 - exp(-h)) h / (2 h') of the step from node i, which has a node before it."""
    before, now, after = (_log_level(run, node) for node in (i - 1, i, i + 1))
    if before == now:  # a repeated time tells nothing of the slope
        return 0.0
    ratio = run.alpha[i] * run.sigma[i + 1] / (run.sigma[i] * run.alpha[i + 1])  # exp(-h)
    return run.alpha[i + 1] * (1 - ratio) * (after - now) / (2 * (now - before))


def _log_level(run: Run, node: int) -> float:
    """The paper's lambda at a node, -inf for pure noise."""
    return log(run.alpha[node] / run.sigma[node]) if run.alpha[node] else float("-inf")
