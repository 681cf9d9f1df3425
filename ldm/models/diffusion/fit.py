"""Whether the parts of a diffusion model fit each other: channels, tokens, vectors and labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ldm.autoencoders.base import FirstStage
from ldm.conditioning.base import Slot
from ldm.conditioning.conditioner import Conditioner, Part
from ldm.conditioning.labels import ClassLabels
from ldm.config import ConfigError

__all__ = ["Encoders", "require_fit"]

_NETWORK = "unet_config.params"


@dataclass(frozen=True)
class Encoders:
    """The parts of a conditioner and where a configuration has them.

    places: modules by their place, `ldm.models.diffusion.condition.encoders_of`.
    """

    conditioner: Conditioner
    places: Mapping[str, nn.Module]

    def of(self, slot: Slot) -> list[Part]:
        """The parts that fill a slot."""
        return [part for part in self.conditioner.parts if part.slot == slot]

    def place(self, part: Part) -> str:
        """Where the configuration has the encoder of a part."""
        found = (place for place, encoder in self.places.items() if encoder is part.embedder)
        return next(found, "cond_stage_config")

    def widths(self, slot: Slot) -> str:
        """What fills a slot: its widths, whose they are and where, joined by +."""
        return " + ".join(
            f"{part.embedder.embed_dim} ({type(part.embedder).__name__}, {self.place(part)})"
            for part in self.of(slot)
        )


def require_fit(
    flat: Mapping[str, Any], net: nn.Module, first_stage: FirstStage | None, encoders: Encoders
) -> None:
    """Refuse parts that do not fit each other, before anything runs.

    flat: parameters of the model.  net: the denoising network.
    Raises ConfigError that names the parameter, its value and what was expected.
    """
    _require_channels(flat, net, first_stage, encoders)
    _require_context(net, encoders)
    _require_vector(net, encoders)
    _require_labels(net, encoders)


def _require_channels(
    flat: Mapping[str, Any], net: nn.Module, first_stage: FirstStage | None, encoders: Encoders
) -> None:
    channels = getattr(first_stage, "latent_channels", None) or flat.get("channels", 3)
    if first_stage:
        origin = f"{type(first_stage).__name__} has latents of {channels} channels"
    else:
        origin = f"channels is {channels}" + ("" if "channels" in flat else " unless it is given")
    if flat.get("channels", channels) != channels:
        raise ConfigError(f"channels: {flat['channels']}, but {origin}")
    found = getattr(net, "out_channels", channels)
    if found != channels:
        unet = flat["unet_config"]
        params = unet.get("params") or {} if isinstance(unet, Mapping) else {}
        name = "out_ch" if "out_ch" in params else "out_channels"  # DDPM's network has the former
        raise ConfigError(f"{_NETWORK}.{name}: {found}, but {origin}")
    extra = [part.embedder.embed_dim for part in encoders.of("concat")]
    found = getattr(net, "in_channels", None)
    expected = channels + sum(filter(None, extra))
    if found is None or None in extra or found == expected:
        return
    joined = "".join(f" + {width} (condition)" for width in extra)
    detail = f"; expected {expected}: {channels} + {encoders.widths('concat')}" if extra else ""
    raise ConfigError(f"{_NETWORK}.in_channels: {found}, but {origin}{joined}{detail}")


def _require_context(net: nn.Module, encoders: Encoders) -> None:
    """Tokens, and a network that attends to tokens of their width, go together."""
    expected, parts = getattr(net, "context_dim", None), encoders.of("crossattn")
    path = f"{_NETWORK}.context_dim"
    if expected is not None and not parts:
        raise ConfigError(f"{path}: {expected}, but no encoder gives tokens to attend to")
    if len({part.embedder.embed_dim for part in parts} - {None}) > 1:
        widths = encoders.widths("crossattn")
        raise ConfigError(
            f"cond_stage_config: tokens of several encoders have different widths: {widths}; "
            f"expected one, that of {path}, {expected}"
        )
    for part in parts:
        width, name = part.embedder.embed_dim, type(part.embedder).__name__
        if width is None or width == expected:
            continue
        found = (
            f"{expected}, but"
            if expected is not None
            else ("not given, so the network attends to nothing, but")
        )
        raise ConfigError(
            f"{path}: {found} {name} gives tokens of width {width} ({encoders.place(part)}); "
            f"expected {width}"
        )


def _require_vector(net: nn.Module, encoders: Encoders) -> None:
    """Vectors y are projected from their summed width; labels, which have none, are looked up."""
    widths = [part.embedder.embed_dim for part in encoders.of("vector")]
    for name in ("num_classes", "adm_in_channels"):
        value = getattr(net, name, None)
        if value is not None and not widths:
            raise ConfigError(
                f"{_NETWORK}.{name}: {value}, but no encoder gives labels or vectors y"
            )
    expected = getattr(net, "adm_in_channels", None)
    if not widths or None in widths or expected == sum(filter(None, widths)):
        return
    raise ConfigError(
        f"{_NETWORK}.adm_in_channels: {expected}, but the condition gives vectors of width "
        f"{' + '.join(map(str, widths))}; expected {encoders.widths('vector')}"
    )


def _require_labels(net: nn.Module, encoders: Encoders) -> None:
    """Labels are looked up in a table of the network that has a row for each, and enter alone."""
    parts = encoders.of("vector")
    for part in parts:
        if not isinstance(part.embedder, ClassLabels):
            continue
        path, rows = encoders.place(part), part.embedder.n_classes
        if len(parts) > 1:
            raise ConfigError(
                f"{path}: {type(part.embedder).__name__} gives labels, which cannot be joined to "
                f"other vectors; expected a ClassEmbedder with slot: vector"
            )
        if (found := getattr(net, "num_classes", None)) != rows:
            raise ConfigError(
                f"{_NETWORK}.num_classes: {found}, but labels are those of {rows} classes "
                f"({path}.params.n_classes); expected {rows}"
            )
