"""What a run is told: its YAML files, its overrides and the flags that stand for parts of them.

The result is what the run records, so that a resumed run is told the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm.cli.arguments import Arguments, parse_devices
from ldm.cli.rundir import RunDir
from ldm.config import ConfigError, load, to_plain

__all__ = ["DEFAULT_SEED", "completed", "settings"]

DEFAULT_SEED = 23


def settings(args: Arguments, run: RunDir) -> dict[str, Any]:
    """The configuration of a run; blocks `model`, `data` and `lightning` with `trainer` are there.

    Configurations of the run that is resumed come first, then those of the command line, then
    the overrides, then flags: `--seed` is `data.params.seed`, Trainer flags and `--gpus` are
    `lightning.trainer`, and `--scale_lr false` makes `base_learning_rate` a `learning_rate`.
    Devices that the command line names, by `gpus` or by `accelerator` and `devices`, replace those
    of the configurations, whichever way these name them.

    Raises ConfigError: an unreadable file, or a block that is missing or no mapping.
    """
    return completed(to_plain(load([*run.config_files(), *args.base], args.overrides)), args)


def completed(config: dict[str, Any], args: Arguments) -> dict[str, Any]:
    """A configuration that has been read, with what the flags say put into it; see `settings`."""
    _require_blocks(config, args)
    params = _mapping(_mapping(config, "data", ""), "params", "data.")
    if args.seed is not None or params.get("seed") is None:
        params["seed"] = DEFAULT_SEED if args.seed is None else args.seed
    trainer = _mapping(_mapping(config, "lightning", ""), "trainer", "lightning.")
    trainer |= args.trainer
    _choose_devices(trainer, args)
    model = config["model"]
    if not args.scale_lr and model.get("base_learning_rate") is not None:
        model["learning_rate"] = model.pop("base_learning_rate")
    return config


def _choose_devices(trainer: dict[str, Any], args: Arguments) -> None:
    if args.gpus is not None:
        trainer["gpus"] = args.gpus
        return
    prefix = "lightning.trainer."
    overridden = {word.partition("=")[0].removeprefix(prefix) for word in args.overrides}
    chosen = {"accelerator", "devices"} & (args.trainer.keys() | overridden)
    if not chosen or "gpus" in overridden or trainer.get("gpus") is None:
        return
    if "accelerator" not in chosen:
        trainer["accelerator"] = parse_devices(trainer["gpus"]).accelerator
    if "devices" not in chosen:
        trainer["devices"] = 1
    # null rather than absent: the records of all starts of a run are read together
    trainer["gpus"] = None


def _mapping(parent: dict[str, Any], key: str, prefix: str) -> dict[str, Any]:
    """The mapping under a key, put there when there is nothing."""
    if parent.get(key) is None:
        parent[key] = {}
    if not isinstance(parent[key], dict):
        raise ConfigError(f"{prefix}{key}: expected a mapping, got {parent[key]!r}")
    return parent[key]  # type: ignore[no-any-return]


def _require_blocks(config: Mapping[str, Any], args: Arguments) -> None:
    if not config and not args.base:
        raise ConfigError("no configuration: give --base CONFIG.yaml, or --resume RUN")
    missing = [block for block in ("model", "data") if config.get(block) is None]
    if missing:
        files = ", ".join(args.base) or "the configuration"
        raise ConfigError(f"{files}: there is no `{missing[0]}:` block")
    model = config["model"]
    if not isinstance(model, dict):
        raise ConfigError(f"model: expected a mapping, got {model!r}")
    rates = [key for key in ("base_learning_rate", "learning_rate") if model.get(key) is not None]
    if len(rates) != 1:
        raise ConfigError(
            "model: give one of base_learning_rate (scaled by devices x batch size x accumulation) "
            f"and learning_rate (used as it is), found {' and '.join(rates) or 'neither'}"
        )
