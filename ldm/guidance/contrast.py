"""What guidance has in common: it goes from a weak prediction past a strong one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

from torch import Tensor

from ldm.diffusion.schedule import Schedule
from ldm.tensor import expand_to, sent_to
from ldm.types import Conditioning, Prediction

__all__ = [
    "Contrast",
    "Guided",
    "Scale",
    "extrapolated",
    "factor_of",
    "is_number",
    "require_guided",
    "with_x0",
]

Scale = float | Tensor


@runtime_checkable
class Guided(Protocol):
    """A denoiser that can also say what its guided prediction was guided from."""

    def with_strong(
        self, x_t: Tensor, t: Tensor, cond: Conditioning | None
    ) -> tuple[Prediction, Prediction]:
        """The guided prediction and the strong one, the same object where there is no guidance."""
        ...


class Contrast(ABC):
    """D = D_weak + scale (D_strong - D_weak), for x0 and eps alike.

    x0 is linear in eps at a given x_t, so guiding both keeps them consistent.

    scale: 1 is the strong prediction alone and 0 the weak one, each at the cost of that one;
    larger values go further the same way. A number, or one per example as a tensor (B,).
    """

    scale: Scale

    @abstractmethod
    def pair(
        self, x_t: Tensor, t: Tensor, cond: Conditioning | None
    ) -> tuple[Prediction, Prediction]:
        """The strong prediction and the weak one."""

    @abstractmethod
    def strong_alone(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Prediction:
        """What `pair` gives first, without the cost of the other."""

    @abstractmethod
    def weak_alone(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Prediction:
        """What `pair` gives second, without the cost of the other."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Prediction:
        """Guided prediction (x0, eps), both (B, C, H, W)."""
        if is_number(self.scale, 0):
            return self.weak_alone(x_t, t, cond)
        return self.with_strong(x_t, t, cond)[0]

    def with_strong(
        self, x_t: Tensor, t: Tensor, cond: Conditioning | None
    ) -> tuple[Prediction, Prediction]:
        """The guided prediction and the strong one, the same object for a scale of 1."""
        if is_number(self.scale, 1):
            strong = self.strong_alone(x_t, t, cond)
            return strong, strong
        strong, weak = self.pair(x_t, t, cond)
        guided = Prediction(
            x0=extrapolated(weak.x0, strong.x0, self.scale),
            eps=extrapolated(weak.eps, strong.eps, self.scale),
        )
        return guided, strong


def is_number(scale: Scale, number: int) -> bool:
    """Whether a scale is this, for all examples; a tensor is not asked, which might wait."""
    return not isinstance(scale, Tensor) and scale == number


def factor_of(scale: Scale, like: Tensor) -> Scale:
    """The scale as a factor of `like` (B, C, H, W): a number, or (B, 1, 1, 1) of its type."""
    if not isinstance(scale, Tensor):
        return scale
    return expand_to(sent_to(scale, like.device), like).to(like.dtype)


def extrapolated(weak: Tensor, strong: Tensor, scale: Scale) -> Tensor:
    """Prediction weak + scale (strong - weak), both (B, C, H, W)."""
    return weak.lerp(strong, factor_of(scale, weak))


def with_x0(prediction: Prediction, x0: Tensor, schedule: Schedule, t: Tensor) -> Prediction:
    """Another x0 (B, C, H, W), and the eps that agrees with it at the same x_t.

    eps changes by -alpha / sigma times the change of x0, which is exact where x0 does not change.
    """
    alpha, sigma = schedule.coefficients(t)
    ratio = expand_to(alpha / sigma, x0).to(x0)
    return Prediction(x0=x0, eps=prediction.eps - ratio * (x0 - prediction.x0))


def require_guided(wrapper: object, denoiser: object) -> None:
    """Raise ValueError, with the order to follow, for a denoiser that has no strong prediction."""
    if not isinstance(denoiser, Guided):
        name, inner = type(wrapper).__name__, type(denoiser).__name__
        raise ValueError(
            f"{name} goes right around ClassifierFree, Autoguided or Projected, got {inner}: put "
            f"{inner} inside of the guidance, or around {name}"
        )
