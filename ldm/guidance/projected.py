"""Adaptive projected guidance: strong guidance without oversaturation (arXiv:2410.02416)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.moment import current_moment
from ldm.diffusion.schedule import Schedule
from ldm.guidance.contrast import Contrast, factor_of, is_number, with_x0
from ldm.types import Conditioning, Prediction

__all__ = ["Projected"]


@dataclass(frozen=True)
class Projected:
    """Guidance without most of its part along the strong prediction, which only adds contrast.

    With the difference d = x0_strong - x0_weak and d' that of the evaluation before in this run,

        d <- d + momentum d'        (kept for the next evaluation)
        d <- d min(1, threshold / ||d||)
        x0 = x0_strong + (scale - 1) (d_orthogonal + eta d_parallel),

    where d_parallel is the projection of d on x0_strong. Norms and products are per image, over
    (C, H, W). eta 1, no momentum and an infinite threshold are the guidance itself.

    guidance: `ClassifierFree` or `Autoguided`, whose scale is used.
    threshold: above 0, in units of the data; a norm, so it grows with the number of elements.
    momentum: in (-1, 1); below 0 it pushes away from where the last steps went. A call outside of
    a sampler's run has no evaluation before it.
    """

    guidance: Contrast
    schedule: Schedule
    eta: float = 0.0
    threshold: float = float("inf")
    momentum: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what has no weak prediction, and numbers outside of their ranges."""
        if not isinstance(self.guidance, Contrast):
            raise ValueError(
                "Projected goes right around ClassifierFree or Autoguided, got "
                f"{type(self.guidance).__name__}"
            )
        if not self.threshold > 0:
            raise ValueError(f"threshold is {self.threshold}, expected a number above 0")
        if not -1 < self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}, expected above -1 and below 1")

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Prediction:
        """Guided prediction (x0, eps), both (B, C, H, W)."""
        return self.with_strong(x_t, t, cond)[0]

    def with_strong(
        self, x_t: Tensor, t: Tensor, cond: Conditioning | None
    ) -> tuple[Prediction, Prediction]:
        """The guided prediction and the strong one, the same object for a scale of 1."""
        scale = self.guidance.scale
        if is_number(scale, 1):
            return self.guidance.with_strong(x_t, t, cond)
        strong, weak = self.guidance.pair(x_t, t, cond)
        direction = self._direction(strong.x0 - weak.x0, strong.x0)
        x0 = strong.x0 + (factor_of(scale, x_t) - 1) * direction
        return with_x0(strong, x0, self.schedule, t), strong

    def _direction(self, difference: Tensor, strong: Tensor) -> Tensor:
        difference = self._with_momentum(difference)
        # a limit of infinity over a norm of 0 is infinity, no NaN
        size = torch.linalg.vector_norm(difference, dim=(1, 2, 3), keepdim=True)
        difference = difference * (self.threshold / size).clamp(max=1)
        along = (difference * strong).sum(dim=(1, 2, 3), keepdim=True)
        # the square of a prediction of all zeros, on which nothing projects
        square = strong.square().sum(dim=(1, 2, 3), keepdim=True)
        parallel = along / square.clamp(min=torch.finfo(square.dtype).tiny) * strong
        return difference - (1 - self.eta) * parallel

    def _with_momentum(self, difference: Tensor) -> Tensor:
        moment = current_moment()
        if not self.momentum or moment is None:
            return difference
        before: Tensor | None = moment.memory.recall(self)
        if before is not None:
            difference = difference.add(before, alpha=self.momentum)
        moment.memory.keep(self, difference.detach())
        return difference
