"""Configuration files: read, merged left to right, then changed by `a.b.c=value`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.config.errors import ConfigError, nearest_path

__all__ = ["load"]

_SHOWN = 200  # characters of a path that is none


def load(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> DictConfig:
    """One configuration from YAML files and overrides.

    paths: merged left to right, a later file wins key by key; lists are replaced whole.
    overrides: `a.b.c=value` in order, the value read as YAML, so `1e-4` is a number, `[1, 2]` a
    list and `null` nothing; `a.0.b=value` reaches into a list.

    Raises ConfigError for a file that is missing (with the nearest name), is a directory, is not
    YAML (with the line), holds no mapping or cannot be merged, and for an override that cannot be
    applied.
    """
    config = OmegaConf.create({})
    for path in paths:
        _merge(config, _read(Path(path)), path)
    for override in overrides:
        _apply(config, override)
    return config


def _read(path: Path) -> DictConfig:
    try:
        is_directory = path.is_dir()
    except (OSError, ValueError) as error:  # a name that is too long, for instance
        raise ConfigError(f"{str(path)[:_SHOWN]}: cannot be read: {_first_line(error)}") from error
    if is_directory:
        names = sorted(entry.name for entry in path.glob("*.yaml"))
        found = f"; it holds {', '.join(names[:8])}" if names else ""
        raise ConfigError(f"{path}: is a directory, expected a YAML file{found}")
    if not path.exists():
        near = nearest_path(path)
        raise ConfigError(f"{path}: no such file" + (f"; did you mean {near}?" if near else ""))
    config = _loaded(path)
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path}: expected a mapping such as 'model: ...', got a list")
    return config


def _loaded(path: Path) -> object:
    try:
        return OmegaConf.load(path)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{path}: {line}not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML file") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply, or a part of itself") from error
    except (ValueError, TypeError) as error:  # a number of thousands of digits, for instance
        raise ConfigError(f"{path}: not a configuration: {_first_line(error)}") from error
    except OmegaConfBaseException as error:  # an interpolation that is not one
        raise ConfigError(f"{path}: {error.full_key}: {_first_line(error)}") from error
    except OSError as error:  # what OmegaConf says of a lone number, too
        raise ConfigError(f"{path}: {_first_line(error)}; expected a mapping") from error


def _merge(config: DictConfig, later: DictConfig, path: str | Path) -> None:
    try:
        config.merge_with(later)
    except OmegaConfBaseException as error:  # which does not say where
        before, after = (OmegaConf.to_container(each, resolve=False) for each in (config, later))
        clash = next((f"{key}: " for key in _clashes(before, after, "")), "")
        raise ConfigError(
            f"{path}: {clash}a list cannot be merged with the mapping of an earlier file, nor a "
            "mapping with its list"
        ) from error


def _clashes(earlier: object, later: object, key: str) -> Iterator[str]:
    """Keys that hold a list in one configuration and a mapping in the other."""
    if isinstance(earlier, dict) and isinstance(later, dict):
        for name in later:
            if name in earlier:
                yield from _clashes(earlier[name], later[name], f"{key}.{name}" if key else name)
    elif {type(earlier), type(later)} == {list, dict}:
        yield key


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _apply(config: DictConfig, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(part and not part.isspace() for part in key.split(".")):
        raise ConfigError(f"override {override!r}: expected a.b.c=value")
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
        assert isinstance(value, dict)
        OmegaConf.update(config, key, value["value"], merge=True, force_add=True)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"override {override!r}: {text!r} is not valid YAML") from error
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise ConfigError(
            f"override {override!r}: cannot set {key}: {_first_line(error)}"
        ) from error
