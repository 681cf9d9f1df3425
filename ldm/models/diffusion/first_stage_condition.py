"""The published condition `__is_first_stage__`: what the first stage makes of an entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm.autoencoders.base import FirstStage, first_latent
from ldm.conditioning.base import FunctionEmbedder, Slot
from ldm.conditioning.conditioner import Conditioner, Part
from ldm.conditioning.spatial import SpatialRescaler

__all__ = ["first_stage_part", "with_published_mask"]


def first_stage_part(flat: Mapping[str, Any], first_stage: FirstStage, slot: Slot) -> Part:
    """The part that encodes the entry `cond_stage_key` with the first stage."""
    # published: the latent as it is, the most likely one, and not scaled. Its width is left open:
    # what a network is told beside it shows in its `in_channels` alone.
    embedder = FunctionEmbedder(lambda images: first_latent(first_stage.encode(images)))
    return Part(embedder, flat.get("cond_stage_key", "image"), slot)


def with_published_mask(
    conditioner: Conditioner, flat: Mapping[str, Any], in_channels: int | None, first_stage: Any
) -> Conditioner:
    """The conditioner of an inpainting model with the mask as its last channel.

    in_channels: of the network.

    published: the mask is the last channel of x_t, though no encoder names it. The network has
    one more channel than the latent and that of `masked_image`: (B, 1, h, w), -1 where a pixel is
    known and 1 where it is hidden, by the nearest pixel.
    """
    is_of_holes = flat.get("cond_stage_config") == "__is_first_stage__" and [
        (part.key, part.slot) for part in conditioner.parts
    ] == [("masked_image", "concat")]
    if not is_of_holes or in_channels != 2 * first_stage.latent_channels + 1:
        return conditioner
    shrink = 1 / first_stage.downsample_factor
    rescaler = SpatialRescaler(1, "nearest", multiplier=shrink, in_channels=1, key="mask")
    return Conditioner((*conditioner.parts, Part(rescaler, "mask", "concat")))
