"""Checks of conditions that are joined to x_t as channels: maps, masks, images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.conditioning.conditioner import Part
from ldm.config import ConfigError
from ldm.tensor import to_image_tensor

__all__ = ["check_concatenated"]


def check_concatenated(model: Any, data: Any, sample: Mapping[str, Any], origin: str) -> None:
    """Hold an example's entries against the encoders of its concatenated conditions.

    model: on the meta device.  data: the set of the sample.  origin: its place in the
    configuration.
    Raises ConfigError for more labels than an encoder knows, and for a condition that does not
    become as large as the latents.
    """
    parts = getattr(getattr(model, "conditioner", None), "parts", ())
    for part in parts:
        if part.slot == "concat":
            value = sample[part.key]
            if not isinstance(value, np.ndarray | Tensor):
                found = type(value).__name__
                raise ConfigError(f"{origin}: {part.key!r} is of type {found}; expected an array")
            _check_labels(part, data, torch.as_tensor(value), origin)
            _check_size(model, part, torch.as_tensor(value), sample, origin)


def _check_labels(part: Part, data: Any, value: Tensor, origin: str) -> None:
    known = getattr(part.embedder, "num_labels", None)
    if known is None or value.ndim != 2 or value.is_floating_point() or value.dtype == torch.uint8:
        return
    count = getattr(data, "num_labels", None) or int(value.max()) + 1
    if count > known:
        raise ConfigError(
            f"model.params.cond_stage_config.params.in_channels: {known}, but {part.key!r} of "
            f"{origin} has labels 0 to {count - 1}"
        )


def _check_size(
    model: Any, part: Part, value: Tensor, sample: Mapping[str, Any], origin: str
) -> None:
    encoder = f"which {type(part.embedder).__name__} encodes,"
    name = f"{origin}: {part.key!r} of shape {tuple(value.shape)}, {encoder}"
    image = torch.as_tensor(sample[model.first_stage_key])[None]
    try:
        cells = model.encode(to_image_tensor(image).to("meta")).shape[2:]
        entry = part.read({part.key: value[None].to("meta")})
        found = part.embedder.encode(entry).shape[2:]
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"{name} does not fit it: {str(error).splitlines()[0]}") from error
    if found != cells:
        sizes = [" x ".join(map(str, each)) for each in (found, cells)]
        raise ConfigError(f"{name} becomes {sizes[0]} cells, but what is diffused has {sizes[1]}")
