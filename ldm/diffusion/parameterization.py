"""What a network predicts, as two coefficients.

Whatever it is, the output is a linear combination out = a x0 + b eps, with (a, b) a function of
(alpha, sigma). Together with x_t = alpha x0 + sigma eps that is a 2x2 system with determinant
det = alpha b - sigma a, solved here once for every parameterization:

    x0 = (b x_t - sigma out) / det        eps = (alpha out - a x_t) / det

The determinant is alpha for eps and sigma (in magnitude) for x0: predicting eps is ill-conditioned
where there is no signal, predicting x0 where there is no noise, v and flow nowhere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.spelling import require_known
from ldm.tensor import expand_to
from ldm.types import Prediction

__all__ = [
    "PARAMETERIZATIONS",
    "check_parameterization",
    "from_prediction",
    "target",
    "to_prediction",
    "x0_error_gain",
]

Level = Tensor | float

# name -> (a, b) of (alpha, sigma); a new parameterization is one line here.
# The floats 0 and 1 mark what needs no arithmetic.
PARAMETERIZATIONS: dict[str, Callable[[Tensor, Tensor], tuple[Level, Level]]] = {
    "eps": lambda alpha, sigma: (0.0, 1.0),  # DDPM, arXiv:2006.11239
    "x0": lambda alpha, sigma: (1.0, 0.0),
    "v": lambda alpha, sigma: (-sigma, alpha),  # Salimans & Ho, arXiv:2202.00512
    "flow": lambda alpha, sigma: (-1.0, 1.0),  # rectified flow, arXiv:2209.03003
}


def check_parameterization(name: str) -> None:
    """Raise ValueError, with the nearest known name, unless `name` is a parameterization."""
    require_known("parameterization", name, PARAMETERIZATIONS)


def target(name: str, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What a perfect network returns, a x0 + b eps.  x0, eps: (B, C, H, W).  alpha, sigma: (B,)."""
    a, b = PARAMETERIZATIONS[name](expand_to(alpha, x0), expand_to(sigma, x0))
    if _is(a, 0):
        return eps if _is(b, 1) else b * eps
    if _is(b, 0):
        return x0 if _is(a, 1) else a * x0
    return a * x0 + b * eps


def to_prediction(name: str, out: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
    """x0 and eps that agree with a network's output and with x_t.

    out, x_t: (B, C, H, W).  alpha, sigma: (B,).  The prediction has the type of x_t, so that a
    network in half precision does not round the state of a sampler.
    """
    out = out if out.dtype == x_t.dtype else out.to(x_t.dtype)
    alpha, sigma = expand_to(alpha, x_t), expand_to(sigma, x_t)
    a, b = PARAMETERIZATIONS[name](alpha, sigma)
    if _is(a, 0):
        eps = out if _is(b, 1) else out / b
        return Prediction(x0=torch.addcmul(x_t, sigma, eps, value=-1).div_(alpha), eps=eps)
    if _is(b, 0):
        x0 = out if _is(a, 1) else out / a
        return Prediction(x0=x0, eps=torch.addcmul(x_t, alpha, x0, value=-1).div_(sigma))
    det = alpha * b - sigma * a
    return Prediction(
        x0=(b * x_t).addcmul_(out, sigma, value=-1).div_(det),
        eps=(alpha * out).sub_(a * x_t).div_(det),
    )


def from_prediction(name: str, prediction: Prediction, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The output a network would have had to give for this prediction: (B, C, H, W)."""
    return target(name, prediction.x0, prediction.eps, alpha, sigma)


def x0_error_gain(name: str, alpha: Tensor, sigma: Tensor) -> Tensor:
    """(sigma / det)^2: squared error of x0 per squared error of the output, at given x_t; (B,).

    Turns a loss weight on x0 into the equivalent weight on what the network predicts.
    """
    a, b = PARAMETERIZATIONS[name](alpha, sigma)
    return (sigma / (alpha * b - sigma * a)) ** 2


def _is(level: Level, number: int) -> bool:
    return isinstance(level, float) and level == number
