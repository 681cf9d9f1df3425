"""A configuration checked from end to end before anything is built.

Everything wrong with a file is found at once: names that do not exist, keys that are misspelt or
missing, values of the wrong type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import MISSING

from ldm.config.construct import to_plain
from ldm.config.errors import ConfigError, did_you_mean, nearest, value_needed
from ldm.config.signature import Stage, parameter_problems
from ldm.config.targets import is_ours, locate

__all__ = ["check", "problems_of"]

_SHOWN = 10

_BLOCKS = ("model", "data", "lightning")
_RATES = ("base_learning_rate", "learning_rate")
_LIGHTNING = ("trainer", "logger", "modelcheckpoint", "callbacks")
# parameters of networks that say how often a part is repeated, which takes time even without memory
_DEPTHS = ("depth", "disc_num_layers", "n_layer", "n_layers", "num_res_blocks", "transformer_depth")
_DEEPEST = 1000
# published: arguments of the trainer that Lightning dropped and the command line translates
_OLD_TRAINER_KEYS = ("gpus", "resume_from_checkpoint")


def check(config: object) -> None:
    """Raise ConfigError with everything that is wrong in a configuration, ten lines at most.

    config: of a whole run (blocks `model`, `data`, `lightning`), as `load` returns it.

    Every target anywhere inside is located and its `params` are held against its signature:
    unknown, misspelt and missing keys, and values that do not fit their annotation. Nothing is
    constructed.
    """
    plain = to_plain(config)
    if not isinstance(plain, Mapping):
        raise ConfigError(f"expected a mapping with {', '.join(_BLOCKS)}, got {plain!r}")
    problems = [*_missing_values(plain, ""), *problems_of(plain)]
    if len(problems) > _SHOWN:
        problems[_SHOWN:] = [f"... and {len(problems) - _SHOWN} more"]
    if problems:
        raise ConfigError("\n".join(problems))


def problems_of(config: Mapping[str, Any]) -> list[str]:
    """What is wrong in a plain configuration, a line each; values still to be given are not."""
    return [
        *_block_problems(config),
        *_depth_problems(config, ""),
        *_target_problems(config, ""),
    ]


def _block_problems(config: Mapping[str, Any]) -> Iterator[str]:
    yield from _unknown_keys(config, _BLOCKS, "")
    for block in _BLOCKS:
        if not isinstance(config.get(block) or {}, Mapping):
            yield f"{block}: expected a mapping, got {config[block]!r}"
            return
    for name in _RATES:
        rate = (config.get("model") or {}).get(name)
        if rate is not None and not _is_positive(rate):
            yield f"model.{name}: expected a number above 0, got {rate!r}"
    lightning = config.get("lightning") or {}
    yield from _unknown_keys(lightning, _LIGHTNING, "lightning.")
    for name in _LIGHTNING:
        if not isinstance(lightning.get(name) or {}, Mapping):
            yield f"lightning.{name}: expected a mapping, got {lightning[name]!r}"
            return
    yield from _part_problems(lightning)
    if lightning.get("trainer"):
        yield from _trainer_problems(lightning["trainer"])


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _part_problems(lightning: Mapping[str, Any]) -> Iterator[str]:
    """Parts that adjust a default of the command line, and so need no target."""
    parts = {name: lightning.get(name) for name in ("logger", "modelcheckpoint")}
    callbacks = lightning.get("callbacks") or {}
    parts |= {f"callbacks.{name}": part for name, part in callbacks.items()}
    for name, part in parts.items():
        path = f"lightning.{name}"
        if not isinstance(part or {}, Mapping):
            yield f"{path}: expected a mapping with `target` or `params`, got {part!r}"
        elif part and "target" not in part:
            yield from _unknown_keys(part, ("target", "params"), f"{path}.")
            if not isinstance(part.get("params") or {}, Mapping):
                yield f"{path}.params: expected a mapping, got {part['params']!r}"


def _trainer_problems(arguments: Mapping[str, Any]) -> Iterator[str]:
    from pytorch_lightning import Trainer  # it takes seconds to import

    known = {key: value for key, value in arguments.items() if key not in _OLD_TRAINER_KEYS}
    yield from parameter_problems(Trainer, known, path="lightning.trainer", stage="part")


def _missing_values(value: object, path: str) -> Iterator[str]:
    if value == MISSING:
        yield value_needed(path)
    for key, item in _items(value):
        yield from _missing_values(item, _join(path, key))


def _depth_problems(value: object, path: str) -> Iterator[str]:
    for key, item in _items(value):
        numbers = item if isinstance(item, list) else [item]
        if key in _DEPTHS and any(isinstance(each, int) and each > _DEEPEST for each in numbers):
            yield f"{_join(path, key)}: expected at most {_DEEPEST}, got {item!r}"
        yield from _depth_problems(item, _join(path, key))


def _target_problems(value: object, path: str) -> Iterator[str]:
    """Problems of every mapping with a target inside a value, or with what only a target takes."""
    if not (isinstance(value, Mapping) and "target" in value):
        for key, item in _items(value):
            yield from _target_problems(item, _join(path, key))
        if isinstance(value, Mapping) and _lacks_target(value, path):
            yield f"{path}: has params but no target"
        return
    known = ("target", "params", *(_RATES if path == "model" else ()))
    yield from _unknown_keys(value, known, _join(path, ""))
    params = value.get("params") or {}
    inside = _join(path, "params")
    if not isinstance(params, Mapping):
        yield f"{inside}: expected a mapping, got {params!r}"
        return
    yield from _parameter_problems(value["target"], params, path)
    for key, item in params.items():
        yield from _target_problems(item, _join(inside, key))


def _lacks_target(value: Mapping[str, Any], path: str) -> bool:
    """Whether a mapping has `params`, and beside them at most a misspelt `target`."""
    if "params" not in value or path.startswith("lightning."):  # some parts have one by default
        return False
    return all(nearest(str(key), ("target",)) for key in value if key != "params")


def _parameter_problems(target: str, params: Mapping[str, Any], path: str) -> Iterator[str]:
    if target == MISSING:
        return
    try:
        constructor = locate(target)
    except ConfigError as error:
        yield f"{_join(path, 'target')}: {error}"
        return
    # the command line knows the run's directory and adds it to loggers and callbacks
    stage: Stage = "part" if path.startswith("lightning.") else "file"
    yield from parameter_problems(constructor, params, path=_join(path, "params"), stage=stage)
    if is_ours(constructor):
        yield from _component_problems(params, _join(path, "params"))


def _component_problems(params: Mapping[str, Any], path: str) -> Iterator[str]:
    """Components of our own classes, by the end of their names, need a target."""
    for key, value in params.items():
        is_component = str(key).endswith("_config") and isinstance(value, Mapping)
        if is_component and "target" not in value and not _lacks_target(value, path):
            found = ", ".join(map(str, value)) or "nothing"
            yield f"{_join(path, key)}: expected a mapping with a target, got keys {found}"


def _unknown_keys(found: Mapping[str, Any], known: tuple[str, ...], prefix: str) -> Iterator[str]:
    for key in found:
        if key not in known:
            near = did_you_mean(str(key), known) or f"; known here: {', '.join(known)}"
            yield f"{prefix}{key}: unknown key{near}"


def _items(value: object) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple) else []


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
