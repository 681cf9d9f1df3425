"""Configuration files: read, merged left to right, then changed by `a.b.c=value`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.config.errors import ConfigError, nearest_path

__all__ = ["load"]


def load(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> DictConfig:
    """One configuration from YAML files and overrides.

    paths: merged left to right, a later file wins key by key; lists are replaced whole.
    overrides: `a.b.c=value` in order, the value read as YAML, so `1e-4` is a number, `[1, 2]` a
    list and `null` nothing; `a.0.b=value` reaches into a list.

    Raises ConfigError for a file that is missing (with the nearest name), is a directory, is not
    YAML (with the line) or holds no mapping, and for an override that cannot be applied.
    """
    config = OmegaConf.create({})
    for path in paths:
        config.merge_with(_read(Path(path)))
    for override in overrides:
        _apply(config, override)
    return config


def _read(path: Path) -> DictConfig:
    if path.is_dir():
        names = sorted(entry.name for entry in path.glob("*.yaml"))
        found = f"; it holds {', '.join(names[:8])}" if names else ""
        raise ConfigError(f"{path}: is a directory, expected a YAML file{found}")
    if not path.is_file():
        near = nearest_path(path)
        raise ConfigError(f"{path}: no such file" + (f"; did you mean {near}?" if near else ""))
    try:
        config = OmegaConf.load(path)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{path}: {line}not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML file") from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path}: expected a mapping such as 'model: ...', got a list")
    return config


def _apply(config: DictConfig, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(part and not part.isspace() for part in key.split(".")):
        raise ConfigError(f"override {override!r}: expected a.b.c=value")
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
        assert isinstance(value, dict)
        OmegaConf.update(config, key, value["value"], merge=True, force_add=True)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: {text!r} is not valid YAML") from error
    except (OmegaConfBaseException, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"override {override!r}: cannot set {key}: {reason}") from error
