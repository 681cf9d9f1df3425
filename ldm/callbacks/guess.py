"""The loss of one who does not look at the input: what a training has to get below."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.denoiser import NetDenoiser

__all__ = ["loss_of_a_guess", "loss_of_silence"]

_EXAMPLES = 512
_CELLS = 256


def loss_of_a_guess(model: Any, batch: Any) -> float | None:
    """The training loss of an output that does not depend on the input; None where it is unknown.

    Of a diffusion model: that of an output of zeros. Of a classifier: ln of the number of classes.
    Of a first stage: the mean distance of the batch's pixels from their mean.
    """
    if hasattr(model, "objective") and hasattr(model, "schedule"):
        size = 1.0  # of latents, which are scaled
        if getattr(model, "first_stage_model", None) is None and isinstance(batch, Mapping):
            size = float(model.get_input(batch).float().square().mean().sqrt())
        return loss_of_silence(model, size)[0]
    if isinstance(classes := getattr(model, "num_classes", None), int):
        return math.log(classes)
    if hasattr(model, "watched_loss") and isinstance(batch, Mapping):
        images = model.get_input(batch).float()
        return float((images - images.mean()).abs().mean())
    return None


@torch.no_grad()
def loss_of_silence(model: Any, size: float = 1.0) -> tuple[float, float]:
    """Mean and standard deviation, over examples, of a diffusion loss whose network says 0.

    For L2 and a plain weight it is the mean over the times of a^2 size^2 + b^2, with target
    = a x0 + b eps: 1 for eps, and for x0 and v of unit size, 2 for flow. Computed with the model's
    own objective on normal numbers, so that it holds for any norm and weight.

    size: root mean square of x0.
    """
    schedule, objective = model.schedule, model.objective
    device = next(model.parameters()).device
    numbers = torch.randn(2, _EXAMPLES, _CELLS, 1, 1, generator=torch.Generator().manual_seed(0))
    x0, eps = numbers.to(device)
    x0 = size * x0
    place = (torch.arange(_EXAMPLES, device=device) + 0.5) / _EXAMPLES
    t, importance = objective.times.sample(place, schedule)
    silent = NetDenoiser(_Silence(), schedule, objective.parameterization)
    logvar = None if model.logvar is None else model.logvar.detach()
    terms = objective.at(silent, x0, None, t=t, eps=eps, logvar=logvar)
    total = (terms.total * importance).double()
    return float(total.mean()), float(total.std())


class _Silence(torch.nn.Module):
    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
        """Zeros of the shape of x (B, C, H, W)."""
        return torch.zeros_like(x)
