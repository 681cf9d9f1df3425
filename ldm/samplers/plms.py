"""PLMS, the pseudo linear multistep method of arXiv:2202.09778."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ldm.samplers.base import Run, Sampler, StepRule
from ldm.types import Prediction

__all__ = ["PLMS"]

# Adams-Bashforth: weights of the newest eps, then of older ones, by how many there are
WEIGHTS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclass(frozen=True)
class PLMS(Sampler):
    """DDIM steps along an eps extrapolated from the last four.

    The first step averages eps at both of its ends, at the cost of one more evaluation; without
    that (order 1) it is DDIM. Weights assume equal steps of time, so use a uniform grid.

    order: 1 to 4, the number of predictions combined.
    """

    order: int = 4

    def __post_init__(self) -> None:
        """Refuse an order without weights."""
        if not 1 <= self.order <= len(WEIGHTS):
            raise ValueError(f"order is {self.order}, expected 1 to {len(WEIGHTS)}")

    @property
    def convergence_order(self) -> int:
        """Second, as the first step is and levels are not evenly spaced; first for order 1."""
        return min(self.order, 2)

    def evaluations(self, steps: int, *, ends_clean: bool = True) -> int:
        """One more than steps, but for a single step and for order 1."""
        return steps + (self.order > 1 and steps > 1)

    def rule(self, run: Run) -> StepRule:
        """Keep the raw eps of the last steps, newest first."""
        alpha, sigma, level = run.alpha, run.sigma, run.level
        history: list[Tensor] = []

        def move(i: int, prediction: Prediction, eps: Tensor) -> tuple[Tensor, Prediction]:
            x0 = prediction.x0.add(prediction.eps - eps, alpha=level[i])  # of the same x_t
            x = (x0 * alpha[i + 1]).add_(eps, alpha=sigma[i + 1])
            return x, Prediction(x0, eps)

        def step(i: int, prediction: Prediction) -> tuple[Tensor, Prediction]:
            history.insert(0, prediction.eps)
            if i == run.start and self.order > 1 and i + 1 < run.count:
                ahead, _ = move(i, prediction, prediction.eps)
                return move(i, prediction, (prediction.eps + run.denoise(ahead, i + 1).eps) / 2)
            del history[self.order :]
            weights = WEIGHTS[len(history) - 1]
            eps = history[0] * weights[0]
            for weight, older in zip(weights[1:], history[1:], strict=True):
                eps.add_(older, alpha=weight)
            return move(i, prediction, eps)

        return step
