"""A configuration read for a check: what is still to be given does not end it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.cli.arguments import Arguments
from ldm.cli.report.places import Places
from ldm.cli.rundir import RunDir
from ldm.config import ConfigError, load, to_plain

__all__ = ["nothing_for_missing", "places_of", "read", "without"]

_GIVEN_LATER = "<to be given>"


def read(args: Arguments, run: RunDir) -> tuple[dict[str, Any], list[str]]:
    """The configuration of a command line, plain, and the paths of values still to be given.

    These are `???` in it, and so is what refers to them.
    Raises ConfigError as `ldm.config.load` and `to_plain` do.
    """
    config = load([*run.config_files(), *args.base], args.overrides)
    try:
        missing = _named_for_later(config)
    except OmegaConfBaseException as error:  # a reference that leads nowhere
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    plain: dict[str, Any] = _marked(to_plain(config))
    return plain, missing


def places_of(args: Arguments, run: RunDir) -> Places:
    """Where the values of a command line were written."""
    words = {word.partition("=")[0]: f"override {word}" for word in args.overrides}
    words |= {f"lightning.trainer.{name}": f"--{name}" for name in args.trainer}
    if args.gpus is not None:
        words["lightning.trainer.gpus"] = f"--gpus {args.gpus}"
    if args.seed is not None:
        words["data.params.seed"] = f"--seed {args.seed}"
    return Places([*run.config_files(), *args.base], words)


def _named_for_later(config: DictConfig) -> list[str]:
    """Put text in place of what is missing, so that references to it can be resolved."""
    keys = (re.sub(r"\[(\d+)\]", r".\1", key) for key in OmegaConf.missing_keys(config))
    found = []
    for key in sorted(keys):
        parent, _, name = key.rpartition(".")
        holder = OmegaConf.select(config, parent) if parent else config
        if not OmegaConf.is_interpolation(holder, int(name) if name.isdigit() else name):
            found.append(key)
    for key in found:
        OmegaConf.update(config, key, _GIVEN_LATER)
    return found


def _marked(value: Any) -> Any:
    """A plain value with `???` where the text is, or where something is made of it."""
    if isinstance(value, Mapping):
        return {key: _marked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_marked(item) for item in value]
    return MISSING if isinstance(value, str) and _GIVEN_LATER in value else value


def without(config: Any, path: str) -> bool:
    """Take a key out of a plain configuration, in place; whether there was one."""
    *above, name = path.split(".")
    for key in above:
        config = _item(config, key)
    if isinstance(config, dict) and name in config:
        del config[name]
        return True
    return False


def _item(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(key)
    is_place = isinstance(value, list) and key.isdigit() and int(key) < len(value)
    return value[int(key)] if is_place else None


def nothing_for_missing(value: Any) -> Any:
    """A plain configuration with null where a value is still to be given."""
    if isinstance(value, Mapping):
        return {key: nothing_for_missing(item) for key, item in value.items()}
    if isinstance(value, list):
        return [nothing_for_missing(item) for item in value]
    return None if value == MISSING else value
