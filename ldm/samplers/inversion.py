"""From data to the noise that a deterministic sampler would draw them from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ldm.diffusion.schedule import Schedule
from ldm.samplers.base import Evaluation, Run, Sampler, StepRule
from ldm.types import Prediction

__all__ = ["DDIMInversion"]


@dataclass(frozen=True)
class DDIMInversion(Sampler):
    """DDIM steps up the noise levels, x_s = alpha_s x0 + sigma_s eps (arXiv:2010.02502, sec. 4.3).

    `sample` takes data and returns the state at the first time of the grid; `DDIM(grid)` leads from
    there back to the data, up to an error in proportion to 1 / steps. An `Explicit` grid that
    begins at a smaller time inverts up to there only.

    Clean data hold no noise to predict: the first step takes eps from the time that it leads to.
    """

    def times(self, schedule: Schedule, steps: int) -> NDArray[np.float64]:
        """The grid's times, rising."""
        return self.grid(schedule, steps)[::-1].copy()

    def evaluation(self, run: Run) -> Evaluation:
        """Clean data are evaluated at the time of the node after them."""
        return lambda x, i: run.denoise(x, i if run.sigma[i] else i + 1)

    def rule(self, run: Run) -> StepRule:
        """x0 and eps, put together at the level of the next node.

        Raises ValueError for a step from clean data to pure noise, at which eps is not known.
        """
        signal, direction = run.alpha[1:], run.sigma[1:]
        if not run.sigma[0]:
            alpha, sigma = run.alpha[1], run.sigma[1]
            if not alpha:
                raise ValueError("inversion to pure noise takes at least 2 steps, got 1")
            # alpha x + sigma eps of clean data x, which the prediction takes for alpha x0 +
            # sigma eps
            signal[0], direction[0] = alpha * alpha, alpha * sigma + sigma

        def step(i: int, prediction: Prediction) -> tuple[Tensor, Prediction]:
            x = (prediction.x0 * signal[i]).add_(prediction.eps, alpha=direction[i])
            return x, prediction

        return step
