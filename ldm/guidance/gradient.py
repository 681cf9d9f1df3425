"""Guidance by gradients: of a classifier at x_t, or of any function of the predicted image.

Both multiply the density of the model by one that is known, p(x_t) p(y | x_t). With
g = grad log p(y | x_t), taken at x_t, Bayes' rule and Tweedie's formula give

    eps <- eps - sigma g        x0 <- x0 + sigma^2 / alpha g,

the algorithm of classifier guidance (arXiv:2105.05233) and of the image guiding in appendix C of
latent diffusion (arXiv:2112.10752). In pure noise, where alpha is 0, x_t says nothing about y: g is
0 there, whatever a network makes of it, and the prediction stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.schedule import Schedule
from ldm.guidance.contrast import factor_of, with_x0
from ldm.tensor import expand_to
from ldm.types import Conditioning, Prediction

__all__ = ["ClassifierGuided", "ImageGuided", "LowResolution", "Through"]

Through = Literal["denoiser", "x0"]

# (x_t (B, C, H, W), t (B,), condition) -> log p(y | x_t) of each example (B,), in nats
LogProb = Callable[[Tensor, Tensor, Conditioning | None], Tensor]


@dataclass(frozen=True)
class ClassifierGuided:
    """eps - scale sigma grad log p(y | x_t), with a classifier of noisy x_t (arXiv:2105.05233).

    log_prob: differentiable, (x_t, t, cond) to log p(y | x_t) (B,) in nats. It gets the condition
    of the denoiser, and may know y by itself. Runs with gradients enabled.
    scale: 1 samples from p(x0 | y), larger values follow the classifier further; a number, or one
    per example as a tensor (B,).
    Nothing changes in pure noise, where alpha is 0.
    """

    denoiser: Denoiser
    schedule: Schedule
    log_prob: LogProb
    scale: float | Tensor = 1.0

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Prediction:
        """Guided prediction (x0, eps), both (B, C, H, W)."""
        with _gradients():
            x, time, given = _leaf(x_t), _usable(t), _usable_condition(cond)
            gradient = _gradient(self.log_prob(x, time, given), x, "log_prob")
        score = gradient * factor_of(self.scale, x_t)
        return _tilted(self.denoiser(x_t, t, cond), score, self.schedule, t)


@dataclass(frozen=True)
class ImageGuided:
    """Guidance by a loss of the image that is predicted (appendix C of arXiv:2112.10752).

    The guiding density is p(y | x_t) = exp(-scale loss(decode(x0))), with x0 predicted from x_t:

    - through "denoiser": the gradient of x_t, through the network. The true one, at the cost of
      the network's backward pass and the memory for it. Nothing changes in pure noise.
    - through "x0": the gradient of x0 alone, without the network:

          x0 <- x0 - scale sigma^2 / (alpha^2 + sigma^2) grad loss.

      The factor is the variance of x0 given x_t for data of unit variance, for which both are the
      same; it has a value for every schedule and time.

    Goes around guidance of the condition, not inside, as a loss knows its batch.

    loss: differentiable, images (B, ...) to (B,): half a squared distance (`LowResolution`), LPIPS,
    minus the similarity of CLIP.
    decode: differentiable, x0 (B, C, H, W) to images (B, ...); None for x0 itself.
    scale: a number, or one per example as a tensor (B,).
    """

    denoiser: Denoiser
    schedule: Schedule
    loss: Callable[[Tensor], Tensor]
    scale: float | Tensor = 1.0
    decode: Callable[[Tensor], Tensor] | None = None
    through: Through = "denoiser"

    def __post_init__(self) -> None:
        """Refuse an unknown way for the gradient."""
        if self.through not in get_args(Through):
            raise ValueError(
                f"through is {self.through!r}, expected one of {list(get_args(Through))}"
            )

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Prediction:
        """Guided prediction (x0, eps), both (B, C, H, W)."""
        factor = factor_of(self.scale, x_t)
        if self.through == "denoiser":
            with _gradients():
                x = _leaf(x_t)
                prediction = self.denoiser(x, _usable(t), _usable_condition(cond))
                gradient = self._gradient(prediction.x0, x)
            found = Prediction(x0=prediction.x0.detach(), eps=prediction.eps.detach())
            return _tilted(found, -factor * gradient, self.schedule, t)
        found = self.denoiser(x_t, t, cond)
        with _gradients():
            x0 = _leaf(found.x0)
            gradient = self._gradient(x0, x0)
        alpha, sigma = (expand_to(level, x_t) for level in self.schedule.coefficients(t))
        variance = sigma**2 / (alpha**2 + sigma**2)
        return with_x0(found, found.x0 - factor * variance * gradient, self.schedule, t)

    def _gradient(self, x0: Tensor, at: Tensor) -> Tensor:
        image = x0 if self.decode is None else self.decode(x0)
        return _gradient(self.loss(image), at, "loss of the decoded image")


@dataclass(frozen=True)
class LowResolution:
    """1/2 ||target - T(image)||^2 per image, T the bicubic resize to the target's size.

    The guide of appendix C: an unconditional model draws a large image whose small version is
    known. A Gaussian likelihood of unit variance per pixel of the target.

    target: (B, C, h, w), or one for all (1, C, h, w), in [-1, 1].
    """

    target: Tensor

    def __call__(self, image: Tensor) -> Tensor:
        """The loss (B,) of images (B, C, H, W), H >= h and W >= w."""
        size = self.target.shape[-2:]
        small = F.interpolate(image, size=size, mode="bicubic", antialias=True)
        return (small - self.target).square().sum(dim=(1, 2, 3)) / 2


def _tilted(prediction: Prediction, score: Tensor, schedule: Schedule, t: Tensor) -> Prediction:
    """The prediction of p(x_t) p(y | x_t), for score = grad log p(y | x_t) (B, C, H, W)."""
    alpha, sigma = (expand_to(level, score) for level in schedule.coefficients(t))
    # a division by 0 in pure noise, where nothing moves
    x0_gain = torch.where(alpha > 0, sigma**2 / alpha, 0)
    eps_gain = torch.where(alpha > 0, sigma, 0)
    return Prediction(
        x0=prediction.x0 + x0_gain * score,
        eps=prediction.eps - eps_gain * score,
    )


def _gradient(values: Tensor, at: Tensor, name: str) -> Tensor:
    """Gradient of each example's value (B,) at its own row of `at`."""
    if values.shape != at.shape[:1]:
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}, expected one number per example, "
            f"{tuple(at.shape[:1])}"
        )
    if not values.requires_grad:
        raise ValueError(
            f"{name} gives no gradient: a part of it is not differentiable, or runs under "
            "torch.no_grad, as `model.decode` does (the decoder itself does not)"
        )
    (gradient,) = torch.autograd.grad(values.sum(), at)
    return gradient


@contextmanager
def _gradients() -> Iterator[None]:
    """Gradients for what is inside, also under the inference mode of a validation."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def _usable(x: Tensor) -> Tensor:
    """The same tensor, or a copy that may be saved for a backward pass."""
    return x.clone() if x.is_inference() else x


def _usable_condition(cond: Conditioning | None) -> Conditioning | None:
    """The same condition, which wrappers may know by now, or one of copies."""
    if cond is None or not any(value.is_inference() for value in cond.slots().values()):
        return cond
    return Conditioning(**{name: _usable(value) for name, value in cond.slots().items()})
