"""A configuration as the benchmark runs it: no checkpoints, no data, conditions given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.conditioning.base import Embedder, Slot
from ldm.conditioning.conditioner import Part
from ldm.config import (
    ConfigError,
    check,
    instantiate_model,
    load,
    model_block,
    with_key,
    without_checkpoints,
)
from ldm.losses.autoencoder import FirstStageLoss
from ldm.models.autoencoder import IdentityFirstStage
from ldm.models.diffusion.ddpm import DDPM
from ldm.models.first_stage_module import FirstStageModule

__all__ = [
    "Given",
    "Shapes",
    "accept_random_lpips",
    "denoising",
    "is_first_stage",
    "measured_block",
    "without_weights",
]

Block = dict[str, Any]


class Given(Embedder):
    """Stands for an encoder: its output is part of the batch."""

    def __init__(self, key: str, slot: Slot, embed_dim: int | None) -> None:
        super().__init__(key=key)
        self.slot = slot
        self.embed_dim = embed_dim

    def encode(self, value: Tensor) -> Tensor:
        """The entry itself, (B, N, D), (B, C, h, w), (B, D) or labels (B,), by slot."""
        return value


@dataclass(frozen=True)
class Shapes:
    """What one image of a configuration is to its denoiser, without the batch dimension.

    latent: (C, H, W).  conditions: batch entry to shape, and labels to the number of classes.
    """

    latent: tuple[int, ...]
    conditions: dict[str, tuple[int, ...] | int]

    def batch(self, size: int, device: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Random latents, and a batch of random conditions."""
        batch: dict[str, Tensor] = {}
        for key, shape in self.conditions.items():
            if isinstance(shape, int):
                batch[key] = torch.randint(shape, (size,), device=device)
            else:
                batch[key] = torch.randn(size, *shape, device=device)
        return torch.randn(size, *self.latent, device=device), batch


def measured_block(path: str | Path, overrides: Sequence[str] = ()) -> Block:
    """The block `model` of a configuration file, no checkpoint named in it.

    Raises ConfigError for a file that cannot be read, when there is no such block, and for what is
    wrong in it.
    """
    config = load([path], overrides)
    with with_key(str(path)):
        block: Block = without_checkpoints(model_block(config))
        check({"model": block})
    return {**block, "params": block.get("params") or {}}


def without_weights(block: Block) -> Any:
    """The model on the meta device: shapes without memory."""
    with torch.device("meta"):
        return instantiate_model(block)


def is_first_stage(model: object) -> bool:
    """Whether it is a first stage, rather than a diffusion model.

    Raises ConfigError when it is neither, and for a first stage that cannot be trained.
    """
    if isinstance(model, FirstStageModule):
        if not isinstance(model.loss, FirstStageLoss):
            name = type(model.loss).__name__
            raise ConfigError(f"model.params.lossconfig: {name} is no training objective")
        return True
    if isinstance(model, DDPM):
        return False
    raise ConfigError(f"model.target: cannot measure the training of a {type(model).__name__}")


def accept_random_lpips(loss: FirstStageLoss) -> None:
    """Have LPIPS, if there is one, run without the weights that make it a judge: for its cost."""
    if loss.perceptual_loss is not None:
        loss.perceptual_loss.load_state_dict(loss.perceptual_loss.state_dict(), assign=True)


def denoising(block: Block) -> tuple[Block, Shapes]:
    """The block of a diffusion model with latents and conditions given, and their shapes.

    First stage and encoders are left out: what remains is what both contenders have.
    """
    model = without_weights(block)
    params = {k: v for k, v in block["params"].items() if not k.startswith("cond_stage")}
    for key in (
        "conditioning_key",
        "concat_mode",
        "scale_by_std",
        "latent_stats",
        "first_stage_key",
    ):
        params.pop(key, None)
    if "first_stage_config" in params:
        params["first_stage_config"] = IdentityFirstStage(latent_channels=model.channels)
    # several encoders may read one entry of a batch
    parts = {f"{index}: {part.key}": part for index, part in enumerate(model.conditioner.parts)}
    if parts:
        params["cond_stage_config"] = [
            Given(key, part.slot, part.embedder.embed_dim) for key, part in parts.items()
        ]
    size = model.image_size
    height, width = (size, size) if isinstance(size, int) else size
    conditions = {key: _condition(part, model, (height, width)) for key, part in parts.items()}
    return {**block, "params": params}, Shapes((model.channels, height, width), conditions)


def _condition(part: Part, model: DDPM, size: tuple[int, int]) -> tuple[int, ...] | int:
    """What an encoder gives for one image of a diffusion model, see `Shapes`.

    size: of the latents, (H, W).
    Raises ConfigError when several share a slot and one does not say how much of it is its own.
    """
    net: Any = model.model.diffusion_model
    if part.slot == "crossattn":
        return (_num_tokens(part.embedder), net.context_dim)
    if part.slot == "vector" and net.num_classes:
        return int(net.num_classes)
    if sum(other.slot == part.slot for other in model.conditioner.parts) > 1:
        width = part.embedder.embed_dim
    else:
        width = net.adm_in_channels if part.slot == "vector" else net.in_channels - model.channels
    if width is None:
        name = type(part.embedder).__name__
        raise ConfigError(f"cond_stage_config: {name} for {part.key!r} has no embed_dim")
    return (width,) if part.slot == "vector" else (width, *size)


def _num_tokens(embedder: Any) -> int:
    """Tokens that an encoder gives for one image; class labels are one."""
    transformer = getattr(embedder, "transformer", None)
    return int(getattr(transformer, "max_seq_len", getattr(embedder, "max_length", 1)))
