"""From the published keys of a condition to its encoders: what they read, fill, and learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ldm.conditioning.base import Embedder, FunctionEmbedder, Slot
from ldm.conditioning.conditioner import Conditioner, Part
from ldm.conditioning.hybrid import HybridConditioner
from ldm.conditioning.labels import ClassLabels
from ldm.config import ConfigError, build, did_you_mean
from ldm.diffusion.denoiser import CONDITIONING_KEYS
from ldm.models.diffusion.first_stage_condition import first_stage_part

__all__ = ["condition_of", "encoders_of", "freeze", "with_published_labels"]

Config = Mapping[str, Any]

_SLOTS: dict[str, Slot] = {"concat": "concat", "crossattn": "crossattn", "adm": "vector"}


def condition_of(
    flat: Config, first_stage: Any
) -> tuple[nn.Module | None, Conditioner, str | None]:
    """What is registered as `cond_stage_model`, the conditioner made of it, and its slots' key.

    flat: parameters of a diffusion model.
    Raises ConfigError for encoders that say too little, and for slots that do not go together.
    """
    config = flat.get("cond_stage_config")
    if config is None or config == "__is_unconditional__":
        if (given := flat.get("conditioning_key")) is not None:
            raise ConfigError(
                f"conditioning_key: {given!r}, but there is no encoder in cond_stage_config whose "
                "output could enter there"
            )
        return None, Conditioner(), None
    default = "concat" if flat.get("concat_mode", True) else "crossattn"
    key = flat.get("conditioning_key") or default
    if config == "__is_first_stage__":
        if first_stage is None:
            raise ConfigError("cond_stage_config: __is_first_stage__ needs a first stage")
        part = first_stage_part(flat, first_stage, _slot(key))
        return None, Conditioner((part,)), key
    built = build(config, path="cond_stage_config")
    if isinstance(built, list | HybridConditioner):
        registered = nn.ModuleList(built) if isinstance(built, list) else built
        parts = tuple(_own_part(each) for each in registered.children())
        return registered, Conditioner(parts), _key_of(parts, flat)
    is_told = not flat.keys().isdisjoint({"conditioning_key", "concat_mode"})
    uses_own_slot = isinstance(built, Embedder) and not is_told
    part = _part(
        built,
        getattr(built, "key", None) or flat.get("cond_stage_key", "image"),
        built.slot if uses_own_slot else _slot(key),
    )
    return built, Conditioner((part,)), _key_of((part,), flat)


def encoders_of(cond_stage: nn.Module | None) -> dict[str, nn.Module]:
    """The encoders of what is registered as `cond_stage_model`, by their place in a configuration.

    The place of one alone is cond_stage_config, that of several cond_stage_config.0 and so on, or
    cond_stage_config.params.c_concat_config and c_crossattn_config in a published pair.
    """
    place = "cond_stage_config"
    if cond_stage is None:
        return {}
    if isinstance(cond_stage, nn.ModuleList):
        return {f"{place}.{index}": encoder for index, encoder in enumerate(cond_stage)}
    if isinstance(cond_stage, HybridConditioner):
        return {
            f"{place}.params.c_concat_config": cond_stage.concat_conditioner,
            f"{place}.params.c_crossattn_config": cond_stage.crossattn_conditioner,
        }
    return {place: cond_stage}


def freeze(flat: Config, cond_stage: nn.Module | None) -> tuple[nn.Module, ...]:
    """Freeze the encoders that are not to be trained, and return those that are.

    `cond_stage_trainable` says so of all, or of each in their order. What an encoder has frozen
    itself stays so.
    Raises ConfigError for a wrong number of them, and where nothing is left to be trained.
    """
    encoders = encoders_of(cond_stage)
    asked = flat.get("cond_stage_trainable", False)
    is_each = isinstance(asked, Sequence)
    if is_each and len(asked) != len(encoders):
        raise ConfigError(
            f"cond_stage_trainable: {list(asked)}; expected one value for all encoders, or "
            f"{len(encoders)}, one for each"
        )
    flags = asked if is_each else [asked] * len(encoders)
    trained = tuple(
        encoder for encoder, is_trained in zip(encoders.values(), flags, strict=True) if is_trained
    )
    for encoder in encoders.values():
        if encoder not in trained:
            encoder.requires_grad_(False).eval()
    if is_each:
        for index, encoder in enumerate(encoders.values()):
            if encoder in trained:
                _require_learning(f"cond_stage_trainable.{index}", encoder)
    else:
        _require_learning("cond_stage_trainable", *trained)
    return trained


def _require_learning(path: str, *encoders: nn.Module) -> None:
    """Raise ConfigError where encoders have parameters, but none that learns."""
    parameters = [parameter for encoder in encoders for parameter in encoder.parameters()]
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        names = " and ".join(type(encoder).__name__ for encoder in encoders)
        raise ConfigError(f"{path}: {names} cannot be trained; expected false")


def with_published_labels(conditioner: Conditioner, num_classes: int | None) -> Conditioner:
    """The conditioner, with labels that no encoder of ours passes on understood as labels.

    published: `adm` with an identity hands labels to the network, whose table of `num_classes` rows
    encodes them; "no class" is its last row.
    """
    if num_classes is None:
        return conditioner
    return Conditioner(
        tuple(
            Part(ClassLabels(num_classes, part.key), part.key, part.slot)
            if part.slot == "vector" and _is_identity(part.embedder)
            else part
            for part in conditioner.parts
        )
    )


def _is_identity(embedder: Embedder) -> bool:
    return isinstance(embedder, FunctionEmbedder) and isinstance(embedder.function, nn.Identity)


def _slot(key: str) -> Slot:
    """The slot that one encoder fills under a conditioning key."""
    if key not in _SLOTS:
        known = f"expected one of {', '.join(_SLOTS)}{did_you_mean(key, _SLOTS)}"
        if key in CONDITIONING_KEYS:
            known = "which needs several encoders: make cond_stage_config a list of them"
        raise ConfigError(f"conditioning_key: {key!r}, {known}")
    return _SLOTS[key]


def _part(module: nn.Module, key: str | None, slot: Slot) -> Part:
    if key is None:
        raise ConfigError(
            f"cond_stage_config: {type(module).__name__} needs a `key`, what it reads"
        )
    embedder = module if isinstance(module, Embedder) else FunctionEmbedder(module)
    if slot != embedder.slot:
        embedder.enter(slot)
    return Part(embedder, key, slot)


def _own_part(module: nn.Module) -> Part:
    """One of several encoders, each of which says itself what it reads and fills."""
    if not isinstance(module, Embedder):
        raise ConfigError(
            f"cond_stage_config: {type(module).__name__} is one of several encoders and says "
            "neither what it reads nor which slot it fills; expected an `Embedder`"
        )
    return _part(module, module.key, module.slot)


def _key_of(parts: tuple[Part, ...], flat: Config) -> str | None:
    """The conditioning key whose slots these parts fill."""
    filled = {part.slot for part in parts}
    key = next(key for key, slots in CONDITIONING_KEYS.items() if set(slots) == filled)
    given = flat.get("conditioning_key")
    if given is not None and given != key:
        names = ", ".join(sorted(filled))
        raise ConfigError(f"conditioning_key: {given!r}, but cond_stage_config fills: {names}")
    return key
