"""The block `model` of a configuration: read, and made into the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.config.construct import Built, instantiate_from_config, to_plain
from ldm.config.errors import ConfigError

__all__ = ["instantiate_model", "model_block", "without_checkpoints"]

_CHECKPOINTS = ("ckpt_path", "diffusion_ckpt_path")  # parameters that name weights to start from


def model_block(config: object) -> dict[str, Any]:
    """The block `model`, plain, of a configuration as `load` returns it.

    Values that other blocks still need are not asked for.
    Raises ConfigError when there is none, and for an interpolation in it that leads nowhere.
    """
    plain = _with_plain_model(config)
    block = plain.get("model") if isinstance(plain, Mapping) else None
    if not isinstance(block, Mapping):
        raise ConfigError("there is no `model:` block")
    return dict(block)


def _with_plain_model(config: object) -> Built:
    if not isinstance(config, DictConfig):
        return to_plain(config)
    try:
        block = config.get("model")
        is_config = isinstance(block, DictConfig)
        return {"model": OmegaConf.to_container(block, resolve=True) if is_config else block}
    except OmegaConfBaseException:
        return to_plain(config)  # fails, too, and says what the user is to do


def instantiate_model(block: Mapping[str, Any]) -> Built:
    """The model of a block `model`; the learning rates beside its target are for the trainer.

    Raises ConfigError as `instantiate_from_config` does.
    """
    described = {key: block[key] for key in ("target", "params") if key in block}
    return instantiate_from_config(described, path="model")


def without_checkpoints(value: Any) -> Any:
    """A plain configuration without any checkpoint (`ckpt_path`, `diffusion_ckpt_path`) in it."""
    if isinstance(value, Mapping):
        kept = {key: v for key, v in value.items() if key not in _CHECKPOINTS}
        return {key: without_checkpoints(v) for key, v in kept.items()}
    return [without_checkpoints(each) for each in value] if isinstance(value, list) else value
