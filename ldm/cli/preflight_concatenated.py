"""Checks of conditions that are joined to x_t as channels: maps, masks, images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.cli.preflight_encoders import encoder_path
from ldm.conditioning.conditioner import Part
from ldm.conditioning.spatial import are_labels
from ldm.config import ConfigError
from ldm.data.module import collate
from ldm.tensor import to_image_tensor

__all__ = ["check_concatenated"]


def check_concatenated(model: Any, data: Any, sample: Mapping[str, Any], origin: str) -> None:
    """Hold an example's entries against the encoders of its concatenated conditions.

    model: on the meta device.  data: the set of the sample.  origin: its place in the
    configuration.
    Raises ConfigError for more labels than an encoder knows, and for a condition that does not
    become as large as the latents.
    """
    parts = [
        part
        for part in getattr(getattr(model, "conditioner", None), "parts", ())
        if part.slot == "concat"
    ]
    if not parts:
        return
    image = torch.as_tensor(sample[model.first_stage_key])[None].to("meta")
    z = model.encode(to_image_tensor(image))
    widths = [(model.first_stage_key, z.shape[1])]  # an entry may be read more than once
    for part in parts:
        value = sample[part.key]
        if not isinstance(value, np.ndarray | Tensor):
            found = type(value).__name__
            raise ConfigError(f"{origin}: {part.key!r} is of type {found}; expected an array")
        path = encoder_path(model, part)
        _check_labels(part, data, torch.as_tensor(value), origin, path)
        width = _checked_width(part, sample, z.shape[2:], origin)
        widths.append((part.key, width))
    expected = getattr(model.model.diffusion_model, "in_channels", None)
    if expected is not None and expected != sum(width for _, width in widths):
        joined = " + ".join(f"{width} ({key})" for key, width in widths)
        raise ConfigError(
            f"model.params.unet_config.params.in_channels: {expected}, but {origin} gives {joined}"
        )


def _check_labels(part: Part, data: Any, value: Tensor, origin: str, path: str) -> None:
    known = getattr(part.embedder, "num_labels", None)
    if known is None or value.ndim != 2 or not are_labels(value):
        return
    count = getattr(data, "num_labels", None) or int(value.max()) + 1
    if count > known:
        raise ConfigError(
            f"{path}.params.in_channels: {known}, but {part.key!r} of {origin} has labels 0 to "
            f"{count - 1}; expected at least {count}"
        )


def _checked_width(part: Part, sample: Mapping[str, Any], cells: torch.Size, origin: str) -> int:
    """Channels that a part gives; ConfigError where they are not of so many cells (h, w)."""
    encoder = f"which {type(part.embedder).__name__} encodes,"
    name = f"{origin}: {part.key!r} of shape {tuple(sample[part.key].shape)}, {encoder}"
    (batch,) = collate([{part.key: sample[part.key]}]).values()
    on_meta = [each.to("meta") for each in batch] if isinstance(batch, list) else batch.to("meta")
    try:
        encoded = part.embedder.encode(part.read({part.key: on_meta}))
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"{name} does not fit it: {str(error).splitlines()[0]}") from error
    if encoded.shape[2:] != cells:
        sizes = [" x ".join(map(str, each)) for each in (encoded.shape[2:], cells)]
        raise ConfigError(
            f"{name} becomes {sizes[0]} cells, but what is diffused has {sizes[1]}; a "
            "SpatialRescaler as cond_stage_config brings it there, or another size in the data"
        )
    return encoded.shape[1]
