"""The flags of the 2022 scripts, as they stand in commands that people have."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ldm.cli.sampling.sizes import pixels_per_cell
from ldm.config import ConfigError

__all__ = [
    "DEFAULT_STEPS",
    "add_iterations",
    "add_published",
    "add_vanilla",
    "bring_to_ours",
    "precision_named",
    "require_latents",
    "take_every_level",
]

DEFAULT_STEPS = 50
_PRECISIONS = {"autocast": "bf16", "full": "fp32"}
_REFUSED = {
    "--skip_save": "a job goes on from its PNGs; --npz writes images.npz beside them",
    "--laion400m": "name the run, or the checkpoint, of that model as RUN",
    "--fixed_code": "an image begins with the noise of its seed; give the same --seed",
}


class _Refused(argparse.Action):
    """A flag that there was: `const` says what to do instead."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        raise ConfigError(f"{option_string}: is not taken: {self.const}")


def add_published(parser: argparse.ArgumentParser) -> None:
    """Add those that all sampling scripts take, which help does not show."""
    add = _adder(parser)
    add("-r", "--resume", "--ckpt", dest="published_run")
    add("--outdir", "-l", "--logdir", dest="out")
    add("--ddim_steps", "-c", "--custom_steps", dest="steps", type=int)
    add("--ddim_eta", "-e", dest="eta", type=float)
    add("--batch_size", dest="batch_size", type=int)
    add("--skip_grid", dest="skip_grid", action="store_true")
    add("--H", dest="height", type=int)
    add("--W", dest="width", type=int)
    add("--n_rows", type=int, default=0)
    add("--C", dest="latent_channels", type=int, default=None)
    add("--f", dest="latent_factor", type=int, default=None)
    for flag, instead in _REFUSED.items():
        add(flag, nargs=0, action=_Refused, const=instead)


def add_iterations(parser: argparse.ArgumentParser) -> None:
    """Add `--n_iter` of txt2img and img2img: draw `--n` images so many times."""
    _adder(parser)("--n_iter", type=int)


def add_vanilla(parser: argparse.ArgumentParser) -> None:
    """Add `-v` of sample: the `ddpm` sampler at every noise level."""
    _adder(parser)("-v", "--vanilla_sample", action="store_true", default=False)


def _adder(parser: argparse.ArgumentParser) -> Any:
    def add(*names: str, **what: Any) -> None:
        what = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS, **what}
        parser.add_argument(*names, **what)

    return add


def precision_named(text: str) -> str:
    """A precision by our name: `autocast` is bf16, `full` is fp32, others stay as they are."""
    return _PRECISIONS.get(text, text)


def bring_to_ours(args: argparse.Namespace) -> None:
    """Set our flags to what published ones say; ConfigError for numbers out of range."""
    args.run = vars(args).pop("published_run", None) or args.run
    height, width = (vars(args).pop(name, None) for name in ("height", "width"))
    if (height is None) != (width is None):
        raise ConfigError("--H and --W: give both, or --size H W")
    if height is not None:
        args.size = [height, width]
    if (iterations := vars(args).pop("n_iter", 1)) < 1:
        raise ConfigError(f"--n_iter {iterations}: expected 1 or more")
    if iterations > 1:
        args.n *= iterations
    if args.n_rows < 0:
        raise ConfigError(f"--n_rows {args.n_rows}: expected 0, for a square grid, or more")


def take_every_level(args: argparse.Namespace, model: Any) -> None:
    """Set sampler and steps to those of `--vanilla_sample`, if it is given.

    Raises ConfigError beside another sampler or number of steps, and for a continuous schedule.
    """
    if not args.vanilla_sample:
        return
    flag, levels = "--vanilla_sample", model.schedule.num_timesteps
    if levels is None:
        raise ConfigError(
            f"{flag}: this model's noise is continuous, and has no number of levels; "
            "give --sampler ddpm and --steps"
        )
    if args.sampler not in (None, "ddpm"):
        raise ConfigError(f"--sampler {args.sampler} and {flag}: that is the sampler ddpm")
    if args.steps not in (DEFAULT_STEPS, levels):
        raise ConfigError(f"--steps {args.steps} and {flag}: that takes all {levels} noise levels")
    args.sampler, args.steps = "ddpm", levels


def require_latents(args: argparse.Namespace, model: Any) -> None:
    """Raise ConfigError unless `--C` and `--f`, where they are given, are what the model has."""
    channels, factor = model.channels, pixels_per_cell(model)
    if args.latent_channels not in (None, channels):
        raise ConfigError(
            f"--C {args.latent_channels}: expected {channels}, the channels of this model's latents"
        )
    if args.latent_factor not in (None, factor):
        raise ConfigError(
            f"--f {args.latent_factor}: expected {factor}, pixels along a side of a cell of this "
            "model's latents"
        )
