"""Checks before anything heavy, of what a diffusion model is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.cli.sampling.entries import kind_of
from ldm.config import ConfigError
from ldm.tensor import to_image_tensor

__all__ = ["check_joined_size"]


def check_joined_size(model: Any, sample: Mapping[str, Any], image: Tensor, origin: str) -> None:
    """A low-resolution image that is joined to the latent must be brought to the latent's size.

    model: on the meta device.  sample: an example of the data set `origin`.  image: its image,
    (H, W, C) or (H, W).
    Raises ConfigError that names both sizes.
    """
    parts = model.conditioner.parts if hasattr(model, "conditioner") else ()
    for part in parts:
        if part.slot != "concat" or kind_of(part) != "low resolution":
            continue
        low = torch.as_tensor(sample[part.key])[None].to("meta")
        joined = part.embedder.encode(part.read({part.key: low})).shape[-2:]
        latent = model.encode(to_image_tensor(image[None]).to("meta")).shape[-2:]
        if joined != latent:
            (height, width), given = joined, tuple(low.shape[1:3])
            raise ConfigError(
                f"{origin}: {part.key} of {given[0]} x {given[1]} pixels is joined as {height} x "
                f"{width} to latents of {latent[0]} x {latent[1]}; expected one size: a factor of "
                "the data that is the first stage's f, or a SpatialRescaler as cond_stage_config"
            )
