"""What every first stage can be told, and what is refused."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, cast

from ldm.config import ConfigError, build, did_you_mean, to_plain
from ldm.config.signature import parameter_problems
from ldm.losses.equivariance import Equivariance
from ldm.nets.autoencoder import Decoder, Encoder

__all__ = ["FirstStageOptions", "checked_options", "halves_of"]


class FirstStageOptions(TypedDict, total=False):
    """What every first stage takes beside its networks, each with its default."""

    image_key: str  # where a batch has its images; "image"
    monitor: str | None  # metric of the best checkpoint; none
    ckpt_path: str | None  # weights to start from; none
    ignore_keys: Sequence[str]  # prefixes of names in that file that are not read; none
    colorize_nlabels: int | None  # label channels, which `log_images` shows in random colours; none
    batch_resize_range: Sequence[int] | None  # low, high side in pixels, see `_resized`; none
    use_ema: bool  # average the generator's weights and validate the average too; false
    lr_g_factor: float  # multiplies the generator's learning rate; 1
    scheduler_config: Mapping[str, Any] | None  # factor on the rate by a player's own steps; none
    optimizer_config: Mapping[str, Any] | None  # of both players; Adam with betas 0.5 and 0.9
    gan_forward: Literal["shared", "published"]  # see `first_stage_step`; "shared"
    train_only: Literal["decoder"] | None  # freeze all before the latent, in eval mode; none
    equivariance: Equivariance | Mapping[str, Any] | None  # p, scales, rotations; none


DEFAULTS: FirstStageOptions = {
    "image_key": "image",
    "monitor": None,
    "ckpt_path": None,
    "ignore_keys": (),
    "colorize_nlabels": None,
    "batch_resize_range": None,
    "use_ema": False,
    "lr_g_factor": 1.0,
    "scheduler_config": None,
    "optimizer_config": {"target": "torch.optim.Adam", "params": {"betas": [0.5, 0.9]}},
    "gan_forward": "shared",
    "train_only": None,
    "equivariance": None,
}


def checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """All options, those that are not given by default.

    Raises ConfigError for one that there is none of, and for a value that means nothing.
    """
    if unknown := options.keys() - DEFAULTS.keys():
        name = min(unknown)
        raise ConfigError(f"{name}: unknown option{did_you_mean(name, DEFAULTS)}")
    checked: dict[str, Any] = {**DEFAULTS, **options}
    if (forward := checked["gan_forward"]) not in ("shared", "published"):
        raise ConfigError(f"gan_forward={forward!r}: expected 'shared' or 'published'")
    if (trained := checked["train_only"]) not in (None, "decoder"):
        raise ConfigError(f"train_only={trained!r}: expected 'decoder', or null to train all")
    if trained and forward == "published":
        raise ConfigError("train_only: 'decoder', but gan_forward: published trains all or nothing")
    checked["equivariance"] = _equivariance(checked["equivariance"])
    return checked


def _equivariance(given: object) -> Equivariance | None:
    """The object itself, that of a configuration, or that of its arguments alone."""
    if isinstance(given := to_plain(given), Mapping) and "target" not in given:
        problems = parameter_problems(Equivariance, given, path="equivariance", stage="file")
        if found := list(problems):
            raise ConfigError("\n".join(found))
        try:
            return Equivariance(**given)
        except ValueError as error:
            raise ConfigError(f"equivariance.{error}") from error
    built = build(given, path="equivariance")
    if built is not None and not hasattr(built, "draw"):
        raise ConfigError(f"equivariance: {built!r}; expected p, scales and rotations, or a target")
    return cast("Equivariance | None", built)


def halves_of(ddconfig: Mapping[str, Any]) -> tuple[Encoder, Decoder]:
    """Encoder and decoder of one set of arguments, of which each takes what it knows."""
    takes = {half: inspect.signature(half).parameters for half in (Encoder, Decoder)}
    names = {name: parameter for half in takes.values() for name, parameter in half.items()}
    for name in sorted(ddconfig.keys() - names.keys()):
        near = did_you_mean(name, names)
        raise ConfigError(f"ddconfig.{name}: Encoder and Decoder have no {name!r}{near}")
    for name, parameter in names.items():
        if parameter.default is parameter.empty and name not in ddconfig:
            raise ConfigError(f"ddconfig.{name}: Encoder and Decoder need it")
    given = {
        half: {name: value for name, value in ddconfig.items() if name in taken}
        for half, taken in takes.items()
    }
    for half, params in given.items():
        for problem in parameter_problems(half, params, path="ddconfig", stage="part"):
            raise ConfigError(problem)
    return Encoder(**given[Encoder]), Decoder(**given[Decoder])
