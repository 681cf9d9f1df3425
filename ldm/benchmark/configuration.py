"""A configuration as the benchmark runs it: no checkpoints, no data, conditions given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from ldm.conditioning.base import Embedder, Slot
from ldm.config import ConfigError, instantiate_from_config, load
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
    "model_block",
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
        """What is given."""
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


def model_block(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> Block:
    """The `model:` block of a configuration, no checkpoint named in it.

    Raises ConfigError when there is none.
    """
    plain = OmegaConf.to_container(load(paths, overrides), resolve=True)
    block = plain.get("model") if isinstance(plain, dict) else None
    if not isinstance(block, dict) or "target" not in block:
        raise ConfigError(f"{', '.join(map(str, paths))}: no block `model` with a target")
    return {"target": block["target"], "params": _without_checkpoints(block.get("params") or {})}


def without_weights(block: Block) -> Any:
    """The model on the meta device: shapes without memory."""
    with torch.device("meta"):
        return instantiate_from_config(block, path="model")


def is_first_stage(model: object) -> bool:
    """Whether it is a first stage, rather than a diffusion model.

    Raises ConfigError when it is neither.
    """
    if isinstance(model, FirstStageModule):
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
    for key in ("conditioning_key", "concat_mode", "scale_by_std", "first_stage_key"):
        params.pop(key, None)
    if "first_stage_config" in params:
        params["first_stage_config"] = IdentityFirstStage(latent_channels=model.channels)
    # two encoders may read one entry of a batch
    parts = {f"{part.key} as {part.slot}": part for part in model.conditioner.parts}
    if parts:
        params["cond_stage_config"] = [
            Given(key, part.slot, part.embedder.embed_dim) for key, part in parts.items()
        ]
    net = model.model.diffusion_model
    size = model.image_size
    height, width = (size, size) if isinstance(size, int) else size
    conditions: dict[str, tuple[int, ...] | int] = {}
    for key, part in parts.items():
        if part.slot == "crossattn":
            conditions[key] = (_num_tokens(part.embedder), net.context_dim)
        elif part.slot == "concat":
            conditions[key] = (net.in_channels - model.channels, height, width)
        else:
            conditions[key] = net.num_classes or (net.adm_in_channels,)
    return {**block, "params": params}, Shapes((model.channels, height, width), conditions)


def _num_tokens(embedder: Any) -> int:
    """Tokens that an encoder gives for one image; class labels are one."""
    transformer = getattr(embedder, "transformer", None)
    return int(getattr(transformer, "max_seq_len", getattr(embedder, "max_length", 1)))


def _without_checkpoints(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_checkpoints(v) for k, v in value.items() if k != "ckpt_path"}
    if isinstance(value, list):
        return [_without_checkpoints(item) for item in value]
    return value
