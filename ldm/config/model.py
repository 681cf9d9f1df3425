"""The block `model` of a configuration: read, and made into the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm.config.construct import Built, instantiate_from_config, to_plain
from ldm.config.errors import ConfigError

__all__ = ["instantiate_model", "model_block", "without_checkpoints"]


def model_block(config: object) -> dict[str, Any]:
    """The block `model`, plain, of a configuration as `load` returns it.

    Raises ConfigError when there is none, and for an interpolation that leads nowhere.
    """
    plain = to_plain(config)
    block = plain.get("model") if isinstance(plain, Mapping) else None
    if not isinstance(block, Mapping):
        raise ConfigError("there is no `model:` block")
    return dict(block)


def instantiate_model(block: Mapping[str, Any]) -> Built:
    """The model of a block `model`; the learning rates beside its target are for the trainer.

    Raises ConfigError as `instantiate_from_config` does.
    """
    described = {key: block[key] for key in ("target", "params") if key in block}
    return instantiate_from_config(described, path="model")


def without_checkpoints(value: Any) -> Any:
    """A plain configuration without any `ckpt_path` in it: no weights to start from."""
    if isinstance(value, Mapping):
        return {k: without_checkpoints(v) for k, v in value.items() if k != "ckpt_path"}
    return [without_checkpoints(each) for each in value] if isinstance(value, list) else value
