"""The training objective: draw a time and noise, add it, compare what the network predicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.diffusion.denoiser import NetDenoiser
from ldm.diffusion.draws import Draws, normal_like
from ldm.diffusion.parameterization import check_parameterization, target
from ldm.diffusion.times import TimeSampler
from ldm.diffusion.times import Uniform as UniformTimes
from ldm.diffusion.weighting import Elbo, Uniform, Weighting
from ldm.spelling import require_known
from ldm.tensor import expand_to, mean_flat, sent_to
from ldm.types import Conditioning, LossTerms

__all__ = ["NORMS", "Objective"]


def _huber(out: Tensor, want: Tensor, delta: float) -> Tensor:
    # twice torch's, which halves the square: equal to l2 for errors up to delta
    return 2 * F.huber_loss(out, want, reduction="none", delta=delta)


# name -> error of (output, target, delta), element by element
NORMS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "l1": lambda out, want, delta: (out - want).abs(),
    "l2": lambda out, want, delta: (out - want).square(),
    "huber": _huber,
}


@dataclass(frozen=True)
class Objective:
    """What training minimises, per example.

    error(t)  = mean over pixels of the norm of output - target
    simple(t) = weighting(t) error / exp(logvar_t) + logvar_t
    total     = importance (simple_weight simple + elbo_weight elbo(t) error)

    parameterization: what the network predicts; that of the denoiser.
    norm: "l1", "l2" or "huber", the square of errors up to `delta` and linear beyond.
    weighting: of the simple term.  times: which times are trained how often.
    elbo: weight that makes the error a term of the bound (with a norm other than l2 it is none, as
    in the release); None to leave it out.  elbo_weight: 0 by default, then it is logged only.
    """

    parameterization: str = "eps"
    norm: str = "l2"
    delta: float = 1.0
    weighting: Weighting = field(default_factory=Uniform)
    times: TimeSampler = field(default_factory=UniformTimes)
    simple_weight: float = 1.0
    elbo_weight: float = 0.0
    elbo: Weighting | None = field(default_factory=Elbo)

    def __post_init__(self) -> None:
        """Refuse unknown names, with the nearest one, and a weight without its term."""
        check_parameterization(self.parameterization)
        require_known("norm", self.norm, NORMS)
        if self.elbo_weight and self.elbo is None:
            raise ValueError(
                f"elbo_weight is {self.elbo_weight}, but elbo is None: expected Elbo()"
            )

    def __call__(
        self,
        denoiser: NetDenoiser,
        x0: Tensor,
        cond: Conditioning | None,
        *,
        draws: Draws,
        logvar: Tensor | None = None,
    ) -> LossTerms:
        """Terms at a drawn time and noise; their batch mean estimates the mean over uniform times.

        x0: (B, C, H, W), scaled latents.  draws: streams "t" and "eps".
        logvar: (T,), see `at`.
        """
        u = sent_to(draws.uniform("t"), x0.device)
        t, importance = self.times.sample(u, denoiser.schedule)
        eps = normal_like(draws, x0, "eps")
        terms = self.at(denoiser, x0, cond, t=t, eps=eps, logvar=logvar)
        self.times.update(t, terms.total)
        return LossTerms(
            total=terms.total * importance,
            parts={name: part * importance for name, part in terms.parts.items()},
        )

    def at(
        self,
        denoiser: NetDenoiser,
        x0: Tensor,
        cond: Conditioning | None,
        *,
        t: Tensor,
        eps: Tensor,
        logvar: Tensor | None = None,
    ) -> LossTerms:
        """Terms at given times and noise, for validation.

        x0, eps: (B, C, H, W).  t: (B,).
        logvar: (T,) log of the variance that the error is measured in, per time; a parameter when
        it is learned.
        Returns total and parts (B,): loss_simple, the plain error; loss_vlb, the term of the bound
        where the schedule has one; loss_gamma, the simple term, when logvar is learned.
        """
        if denoiser.parameterization != self.parameterization:
            raise ValueError(
                f"the objective compares {self.parameterization!r}, the denoiser predicts "
                f"{denoiser.parameterization!r}"
            )
        schedule = denoiser.schedule
        alpha, sigma = schedule.coefficients(t)
        x_t = expand_to(alpha, x0) * x0 + expand_to(sigma, x0) * eps
        want = target(self.parameterization, x0, eps, alpha, sigma)
        out = denoiser.output(x_t, t, cond)
        if want.dtype != torch.float64:  # errors in float32, also under autocast
            out, want = out.float(), want.float()
        error = mean_flat(NORMS[self.norm](out, want, self.delta))

        parts = {"loss_simple": error}
        simple = error * self.weighting(schedule, t, self.parameterization)
        if logvar is not None:
            logvar_t = logvar[t]
            simple = simple / logvar_t.exp() + logvar_t
            if logvar.requires_grad:
                parts["loss_gamma"] = simple
        total = self.simple_weight * simple
        # a continuous schedule has no term of the bound to log; asked for one, `elbo` says so
        if self.elbo is not None and (self.elbo_weight or schedule.num_timesteps is not None):
            parts["loss_vlb"] = error * self.elbo(schedule, t, self.parameterization)
        if self.elbo_weight:
            total = total + self.elbo_weight * parts["loss_vlb"]
        return LossTerms(total=total, parts=parts)
