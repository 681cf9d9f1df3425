"""Whether two models live in one noisy latent space: same first stage, same scale, same schedule.

A model that guides another one must have been trained on what that draws. Neither would notice
otherwise: shapes agree, and the numbers say nothing.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldm.diffusion.schedule import Schedule
from ldm.models.autoencoder import IdentityFirstStage

__all__ = ["require_same_space"]

# parts of a first stage that latents do not depend on
_NOT_ENCODING = ("decoder.", "post_quant_conv.", "loss.", "colorize", "model_ema.", "sharpness.")
_COMPARED = 1001  # times of a continuous schedule


def require_same_space(own: Any, other: Any) -> None:
    """Raise ValueError, with both values, unless z_t of two models means the same.

    own, other: modules with a `schedule` and, for latents, `first_stage_model` and `scale_factor`.
    `own` is called by its class in the message, and so is `other`.

    Of the first stage, class and weights of the encoder are compared; decoders may differ.
    """
    names = (type(own).__name__, type(other).__name__)
    _require_same_schedule(own.schedule, other.schedule, names)
    _require_same_first_stage(_first_stage(own), _first_stage(other), names)
    scales = [float(getattr(model, "scale_factor", 1.0)) for model in (own, other)]
    if not math.isclose(*scales, rel_tol=1e-6):  # NaN, which no scale is, is close to nothing
        _refuse("scale_factor", scales, names)


def _refuse(what: str, values: Any, names: tuple[str, str]) -> None:
    a, b = (f"{value:.9g}" if isinstance(value, float) else value for value in values)
    raise ValueError(
        f"{what}: {a} in the {names[0]}, {b} in the {names[1]}; one guides the other only "
        "in the process that both were trained on"
    )


def _require_same_schedule(own: Schedule, other: Schedule, names: tuple[str, str]) -> None:
    for name in ("num_timesteps", "t_min", "t_max"):
        values = [getattr(schedule, name) for schedule in (own, other)]
        if values[0] != values[1]:
            _refuse(f"schedule, {name}", values, names)
    times = np.linspace(own.t_min, own.t_max, own.num_timesteps or _COMPARED)
    levels = zip(("alpha", "sigma"), own.exact(times), other.exact(times), strict=True)
    for level, ours, theirs in levels:
        # 1e-4 tells schedules apart, not roundings of a table
        differs = ~np.isclose(ours, theirs, rtol=1e-4, atol=1e-7)
        if differs.any():
            first = int(differs.argmax())
            found = [float(ours[first]), float(theirs[first])]
            _refuse(f"schedule, {level} at time {times[first]:g}", found, names)


def _first_stage(model: Any) -> nn.Module | None:
    """What makes the latents; None where images are diffused."""
    stage: nn.Module | None = getattr(model, "first_stage_model", None)
    return None if isinstance(stage, IdentityFirstStage) else stage


def _require_same_first_stage(
    own: nn.Module | None, other: nn.Module | None, names: tuple[str, str]
) -> None:
    kinds = [type(stage).__name__ if stage is not None else "none" for stage in (own, other)]
    if type(own) is not type(other):
        _refuse("first stage", kinds, names)
    if own is None or other is None:
        return
    weights = [_encoder(stage) for stage in (own, other)]
    is_same = weights[0].keys() == weights[1].keys() and all(
        value.shape == weights[1][key].shape
        and torch.equal(value.cpu(), weights[1][key].to(value.dtype).cpu())
        for key, value in weights[0].items()
    )
    if not is_same:
        digests = [f"{kind} of sha256 {_digest(w)}" for kind, w in zip(kinds, weights, strict=True)]
        _refuse("first stage, weights of its encoder", digests, names)


def _encoder(stage: nn.Module) -> dict[str, Tensor]:
    state = stage.state_dict()
    return {key: state[key] for key in sorted(state) if not key.startswith(_NOT_ENCODING)}


def _digest(weights: dict[str, Tensor]) -> str:
    """The beginning of a hash of names and numbers."""
    found = hashlib.sha256()
    for key, value in weights.items():
        found.update(key.encode())
        found.update(value.detach().cpu().contiguous().float().numpy().tobytes())
    return found.hexdigest()[:12]
