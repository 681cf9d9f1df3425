"""Images in pixels and what is diffused in its cells: sizes, channels, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ldm.cli.first_stages import image_channels
from ldm.config import ConfigError

__all__ = ["cells_of", "decoder_of", "image_channels_of", "latent_size", "pixels_per_cell"]


def cells_of(model: Any) -> int:
    """Pixels that the sides of an image are a multiple of."""
    network: int = getattr(model.model.diffusion_model, "downsample_factor", 1)
    return network * pixels_per_cell(model)


def pixels_per_cell(model: Any) -> int:
    """Pixels along a side of one cell of what is diffused: f of the first stage, 1 without one."""
    factor: int = getattr(_first_stage(model), "downsample_factor", 1)
    return factor


def image_channels_of(model: Any) -> int:
    """Channels of a model's images."""
    stage = _first_stage(model)
    return int(model.channels) if stage is None else image_channels(stage)


def decoder_of(model: Any) -> Callable[[Tensor], Tensor] | None:
    """What makes images of scaled latents, with gradients; None where images are diffused."""
    stage = _first_stage(model)
    return None if stage is None else lambda z: stage.decode(z / model.scale_factor)


def latent_size(name: str, size: Sequence[int] | None, model: Any) -> tuple[int, int] | None:
    """Pixels (H, W) of a flag in latent cells; ConfigError for those the model does not take."""
    if size is None:
        return None
    cells, factor = cells_of(model), pixels_per_cell(model)
    if any(side < 1 or side % cells for side in size):
        multiples = "multiples" if min(size) > 0 else "positive multiples"
        raise ConfigError(f"--{name} {size[0]} {size[1]}: expected {multiples} of {cells} pixels")
    return size[0] // factor, size[1] // factor


def _first_stage(model: Any) -> Any:
    return getattr(model, "first_stage_model", None)
