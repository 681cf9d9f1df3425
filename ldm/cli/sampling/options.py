"""The flags that say how images are drawn, as options of a model's `sample`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ldm.cli.sampling.guiding import GUIDANCE_FLAGS
from ldm.cli.sampling.published import DEFAULT_STEPS, require_latents
from ldm.cli.sampling.sizes import latent_size
from ldm.config import ConfigError
from ldm.diffusion.schedule import Schedule
from ldm.log import log
from ldm.models.diffusion.sampling import SampleOptions
from ldm.samplers.base import Nodes, Run, Sampler
from ldm.samplers.names import GRIDS, SAMPLERS, sampler_named
from ldm.types import Conditioning, Prediction

__all__ = [
    "PIXEL_FLAGS",
    "add_sampler",
    "require_condition",
    "require_runs",
    "sample_options",
]

# flags on which the pixels of an image depend, beside the model, its seed and its item
PIXEL_FLAGS = (
    *("steps", "sampler", "times", "eta", "size", "weights", "precision", "decode_batch"),
    "compiled",  # whether by --compile; CUDA graphs replay the same kernels
    *GUIDANCE_FLAGS,
)


def add_sampler(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the sampler."""
    add = parser.add_argument_group("how it draws").add_argument
    add("--seed", type=int, default=0, help="seed of the first image; image i uses seed + i")
    add("--steps", type=int, default=DEFAULT_STEPS, help="steps of the sampler per image")
    add("--sampler", metavar="NAME", help=f"{', '.join(SAMPLERS)}; default: the model's own")
    add("--times", metavar="GRID", help=f"{', '.join(GRIDS)}; default: the sampler's own")
    add("--eta", type=float, help="noise of a step, 0 to 1; without --sampler, of ddim")
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="pixels; as trained by default")
    # published
    add("--plms", dest="sampler", action="store_const", const="plms", help=argparse.SUPPRESS)
    add(
        "--dpm_solver",
        dest="sampler",
        action="store_const",
        const="dpmpp-2m",
        help=argparse.SUPPRESS,
    )


def sample_options(args: argparse.Namespace, model: Any) -> SampleOptions:
    """Options of `model.sample`; ConfigError for what this model cannot do."""
    require_condition(args, model)
    require_latents(args, model)
    steps, sampler = _steps(args.steps, model), _sampler(args, model)
    require_runs(sampler, model.schedule, steps)
    return {
        "steps": steps,
        "scale": args.scale,
        "size": latent_size("size", args.size, model),
        "weights": args.weights,
        "sampler": sampler,
        "decode_batch": args.decode_batch,
    }


def require_condition(args: argparse.Namespace, model: Any) -> None:
    """Raise ConfigError where there is guidance, but nothing that the model can be without.

    Warns of a model whose configuration drops none of what it is told in training.
    """
    parts = model.conditioner.parts
    if args.scale == 1:
        return
    if not parts:
        raise ConfigError(f"--scale {args.scale:g}: an unconditional model has nothing to follow")
    if not any(part.has_null for part in parts):
        keys = ", ".join(dict.fromkeys(part.key for part in parts))
        raise ConfigError(
            f"--scale {args.scale:g}: this model is never without {keys}, so there is nothing to "
            "follow: expected 1, or a model that was trained with a drop_rate"
        )
    if not any(part.embedder.drop_rate for part in parts):
        log.warning(
            "--scale %g: no encoder of this model has a drop_rate; unless its data dropped "
            "conditions, it never learned what no condition is, which guidance leads away from",
            args.scale,
        )


def require_runs(sampler: Sampler, schedule: Schedule, steps: int) -> None:
    """Raise ConfigError, naming --times or --sampler, unless so many steps can be taken.

    Some grids and rules need a finite signal-to-noise ratio, which a schedule that ends in pure
    noise does not have, and published grids are for integer times. Nothing is evaluated: the times
    and the coefficients of a run without examples are computed.
    """
    grid, name = (type(each).__name__ for each in (sampler.grid, sampler))
    try:
        times = sampler.times(schedule, steps)
    except ValueError as error:
        raise ConfigError(f"--times: {grid} in {steps} steps: {error}") from error
    like = torch.empty(0, 0)
    run = Run(
        denoiser=_unasked,
        cond=None,
        draws=None,
        schedule=schedule,
        nodes=Nodes.of(schedule, times, like),
        start=0,
        like=like,
    )
    try:
        sampler.rule(run)
    except ValueError as error:
        raise ConfigError(f"--sampler: {name} on {type(schedule).__name__}: {error}") from error


def _unasked(x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Prediction:
    raise AssertionError("a rule evaluates nothing before its first step")


def _sampler(args: argparse.Namespace, model: Any) -> Sampler:
    """The sampler of the flags, with the model's own where they say nothing."""
    own: Sampler = model.sampler
    if args.sampler is None and args.eta is None and args.times is None:
        return own
    try:
        named = sampler_named(args.sampler or "ddim", grid=args.times, eta=args.eta)
    except ValueError as error:
        words = {"sampler": "--sampler", "grid": "--times", "eta": "--eta"}
        name, _, rest = str(error).partition(":")
        raise ConfigError(f"{words.get(name, name)}:{rest}") from error
    only_times = args.sampler is None and args.eta is None
    return replace(own, grid=named.grid) if only_times else named


def _steps(steps: int, model: Any) -> int:
    limit = model.schedule.num_timesteps or steps
    if not 1 <= steps <= limit:
        raise ConfigError(f"--steps {steps}: expected 1 to {limit}")
    return steps
