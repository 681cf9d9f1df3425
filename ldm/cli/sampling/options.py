"""The flags that say how images are drawn, as options of a model's `sample`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ldm.config import ConfigError
from ldm.models.diffusion.sampling import SampleOptions
from ldm.samplers.base import Sampler
from ldm.samplers.ddim import DDIM

__all__ = ["PIXEL_FLAGS", "cells_of", "sample_options"]

# flags on which the pixels of an image depend, beside the model, its seed and its item
PIXEL_FLAGS = ("steps", "scale", "eta", "size", "weights", "precision", "decode_batch")


def sample_options(args: argparse.Namespace, model: Any) -> SampleOptions:
    """Options of `model.sample`; ConfigError for what this model cannot do."""
    options: SampleOptions = {
        "steps": _steps(args.steps, model),
        "scale": args.scale,
        "size": _latent_size(args.size, model),
        "weights": args.weights,
        "sampler": _sampler(args),
        "decode_batch": args.decode_batch,
    }
    if args.scale != 1 and not model.conditioner.parts:
        raise ConfigError(f"--scale {args.scale:g}: an unconditional model has nothing to follow")
    return options


def _sampler(args: argparse.Namespace) -> Sampler | None:
    """DDIM where its noise is given; None for the model's own sampler."""
    return None if args.eta is None else DDIM(eta=args.eta)


def _steps(steps: int, model: Any) -> int:
    limit = model.schedule.num_timesteps or steps
    if not 1 <= steps <= limit:
        raise ConfigError(f"--steps {steps}: expected 1 to {limit}")
    return steps


def cells_of(model: Any) -> int:
    """Pixels that the sides of an image are a multiple of."""
    network: int = getattr(model.model.diffusion_model, "downsample_factor", 1)
    return network * _factor(model)


def _factor(model: Any) -> int:
    factor: int = getattr(getattr(model, "first_stage_model", None), "downsample_factor", 1)
    return factor


def _latent_size(size: Sequence[int] | None, model: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    cells, factor = cells_of(model), _factor(model)
    if any(side < 1 or side % cells for side in size):
        raise ConfigError(f"--size {size[0]} {size[1]}: expected multiples of {cells} pixels")
    return size[0] // factor, size[1] // factor
