"""Sizes of images in pixels, and of what is diffused in its cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ldm.config import ConfigError

__all__ = ["cells_of", "latent_size"]


def cells_of(model: Any) -> int:
    """Pixels that the sides of an image are a multiple of."""
    network: int = getattr(model.model.diffusion_model, "downsample_factor", 1)
    return network * _factor(model)


def _factor(model: Any) -> int:
    factor: int = getattr(getattr(model, "first_stage_model", None), "downsample_factor", 1)
    return factor


def latent_size(name: str, size: Sequence[int] | None, model: Any) -> tuple[int, int] | None:
    """Pixels (H, W) of a flag in latent cells; ConfigError for those the model does not take."""
    if size is None:
        return None
    cells, factor = cells_of(model), _factor(model)
    if any(side < 1 or side % cells for side in size):
        raise ConfigError(f"--{name} {size[0]} {size[1]}: expected multiples of {cells} pixels")
    return size[0] // factor, size[1] // factor
