"""From a mapping with `target` and `params` to the object it describes."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from ldm.config.errors import ConfigError, value_needed
from ldm.config.signature import parameter_problems
from ldm.config.targets import is_library, is_ours, locate

__all__ = ["build", "instantiate_from_config", "to_plain"]

Built: TypeAlias = Any  # what a target makes: its caller knows which class it asked for

# what a constructor raises that computes with values of another kind or range than it takes
_OF_VALUES = (
    *(TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError),
    OSError,  # of a path that is no file's
)
_SHOWN = 50  # characters of a value

# published: what a model's `cond_stage_config` says when no conditioner is to be built
_MARKERS = ("__is_first_stage__", "__is_unconditional__")


def instantiate_from_config(
    config: object, *, path: str = "", given: Mapping[str, Any] | None = None
) -> Built:
    """The object a configuration describes, one level deep: `target(**params)`.

    config: mapping with `target` and, optionally, `params`; nested configurations arrive as
        plain dictionaries, for the target to build when it needs them. The published markers
        `__is_first_stage__` and `__is_unconditional__` give None.
    path: of `config` in its file, for the error message.
    given: parameters that the program adds, e.g. those an optimizer is to train.

    Raises ConfigError when there is no `target`, when it is refused or not found, and when a
    parameter is unknown or missing. A ValueError of the constructor becomes one, with the path.
    """
    config = to_plain(config)
    if config in _MARKERS:
        return None
    if not isinstance(config, Mapping) or "target" not in config:
        found = f"keys {', '.join(map(str, config))}" if isinstance(config, Mapping) else config
        raise ConfigError(f"{_at(path)}expected a mapping with a target, got {found}")
    return _call(config["target"], config.get("params") or {}, path, given or {})


def build(value: object, *, path: str = "") -> Built:
    """A configuration with everything inside it built, innermost first; an object as it is.

    value: a mapping with `target` becomes its object; other mappings and lists keep their form;
        a published marker gives None, but inside of something it stays, for that to read.
    path: of `value` in its file, for the error message.
    """
    value = to_plain(value)
    return None if isinstance(value, str) and value in _MARKERS else _built(value, path)


def _built(value: object, path: str) -> Built:
    inside = f"{path}." if path else ""
    if isinstance(value, Mapping) and "target" in value:
        params = _built(value.get("params") or {}, f"{inside}params")
        return _call(value["target"], params, path, {})
    if isinstance(value, Mapping):
        return {key: _built(item, f"{inside}{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_built(item, f"{inside}{index}") for index, item in enumerate(value)]
    return value


def to_plain(value: object) -> Built:
    """A configuration as plain dictionaries and lists, interpolations resolved.

    Raises ConfigError for an interpolation that leads nowhere, or to a value that is still to be
    given. What is no configuration is returned as it is.
    """
    if not isinstance(value, DictConfig | ListConfig):
        return value
    try:
        return OmegaConf.to_container(value, resolve=True)
    except InterpolationToMissingValueError as error:
        raise ConfigError("\n".join(map(value_needed, _still_to_give(value)))) from error
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{error.full_key}: {reason}") from error


def _still_to_give(config: DictConfig | ListConfig) -> list[str]:
    """Keys, in the whole of which this is a part, that are `???` and do not only refer to one."""
    whole: Any = config._get_root()

    def refers(key: str) -> bool:
        parent, _, name = key.rpartition(".")
        holder = OmegaConf.select(whole, parent) if parent else whole
        return OmegaConf.is_interpolation(
            holder, int(name) if isinstance(holder, ListConfig) else name
        )

    keys = {re.sub(r"\[(\d+)\]", r".\1", key) for key in OmegaConf.missing_keys(whole)}
    return [key for key in sorted(keys) if not refers(key)]


def _call(target: str, params: Mapping[str, Any], path: str, given: Mapping[str, Any]) -> Built:
    try:
        constructor = locate(target)
    except ConfigError as error:
        raise ConfigError(f"{_at(path)}{error}") from error
    inside = f"{path}.params" if path else ""
    problems = list(parameter_problems(constructor, params, path=inside, given=given))
    if problems:
        raise ConfigError("\n".join(problems))
    try:
        return constructor(**params, **given)
    except ValueError as error:
        raise ConfigError(_placed(str(error), path or target, {**params, **given})) from error
    except _OF_VALUES as error:
        if not (is_ours(constructor) or is_library(constructor)):
            raise  # the user's own code: where it failed is what its author wants to see
        if type(error).__name__ == "OutOfMemoryError":  # of a device, which others answer
            raise
        raise ConfigError(_unfit(error, path or target, target, params)) from error


def _unfit(error: Exception, path: str, target: str, params: Mapping[str, Any]) -> str:
    """What is said of values that nothing had refused before a constructor failed on them."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
    reason = next(iter(str(error).splitlines()), "")
    given = ", ".join(f"{key}={str(value)[:_SHOWN]}" for key, value in params.items())
    return (
        f"{path}: {target} cannot be built of these parameters: {type(error).__name__} at {place}: "
        f"{reason[: _SHOWN * 4]} (given {given[: _SHOWN * 8] or 'nothing'})"
    )


def _placed(message: str, path: str, params: Mapping[str, Any]) -> str:
    """A constructor's message behind its path, as far down as the message names a parameter."""
    begins_with = re.match(r"(\w+)[.:]", message)
    is_parameter = begins_with is not None and begins_with[1] in params
    return f"{path}.params.{message}" if is_parameter else f"{path}: {message}"


def _at(path: str) -> str:
    return f"{path}: " if path else ""
