"""What a first stage costs: its own time per image, and the denoiser's work on its latents."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ldm.autoencoders.base import first_latent
from ldm.autoencoders.padded import Padded
from ldm.benchmark.configuration import denoising, measured_block
from ldm.benchmark.setting import Elapsed, Precision, Setting
from ldm.config import ConfigError, instantiate_model
from ldm.models.autoencoder import IdentityFirstStage
from ldm.tensor import to_image_tensor

__all__ = ["CodingTimes", "DenoisingCost", "coding_times", "costs", "denoising_cost"]


def costs(
    first_stage: Any,
    image: Tensor,
    latent: tuple[int, int, int],
    *,
    precision: Precision,
    repeats: int,
    unet: str | None = None,
) -> dict[str, Any]:
    """What one image (1, H, W, C) and its latent (c, h, w) cost, as a record says it.

    Milliseconds of both halves, the median of `repeats` calls; and the GFLOP of one step of the
    denoiser that the configuration `unet` describes.
    """
    setting = Setting(device=str(image.device), precision=precision)
    times = coding_times(Padded(first_stage), to_image_tensor(image), setting, repeats=repeats)
    found: dict[str, Any] = {
        "image": list(image.shape[1:]),
        "latent": list(latent),
        "numbers": math.prod(latent),
    }
    for name, elapsed in (("encode", times.encode), ("decode", times.decode)):
        found[f"{name}_ms"] = {"wall": 1e3 * elapsed.wall, "processor": 1e3 * elapsed.busy}
    if unet:
        cost = denoising_cost(unet, latent)
        found["unet"] = {
            "config": unet,
            "gflop_per_step": cost.gflop,
            "latent": list(cost.latent),
        }
    return found


@dataclass(frozen=True)
class CodingTimes:
    """Median seconds of one call for one image."""

    encode: Elapsed
    decode: Elapsed


def coding_times(
    first_stage: Any, image: Tensor, setting: Setting, *, warmup: int = 2, repeats: int = 7
) -> CodingTimes:
    """Time a first stage on one image (1, C, H, W) in [-1, 1], encoder and decoder apart.

    A quantizer counts to the half that calls it: the encoder's of a VQ model, the decoder's of its
    interface for diffusion.
    """
    with torch.no_grad(), setting.autocast():
        encoding = first_stage.encode(image)
        z = first_latent(encoding[0] if isinstance(encoding, tuple) else encoding)

        def median(function: Callable[[], object]) -> Elapsed:
            for _ in range(warmup):
                function()
            times = [setting.timed(function) for _ in range(repeats)]
            busy, wall = (statistics.median(column) for column in zip(*times, strict=True))
            return Elapsed(busy, wall)

        return CodingTimes(
            median(lambda: first_stage.encode(image)), median(lambda: first_stage.decode(z))
        )


@dataclass(frozen=True)
class DenoisingCost:
    """Work of one step for one image: gflop, and the latent's (c, h, w) that it was counted at.

    A multiplication and an addition are two.
    """

    gflop: float
    latent: tuple[int, int, int]


def denoising_cost(path: str | Path, latent: tuple[int, int, int]) -> DenoisingCost:
    """What one step of a configured denoiser costs on latents (c, h, w), without guidance.

    path: configuration of a diffusion model. Its network gets c channels in and out; sides that it
    cannot halve as often as it does are taken up to the next that it can.

    Counted on the meta device. Raises ConfigError for a configuration of something else.
    """
    block = measured_block(path)
    if "unet_config" not in block["params"]:
        raise ConfigError(f"--unet {path}: expected the configuration of a diffusion model")
    given, shapes = denoising(block)
    channels, factor = latent[0], _downsampling(given)
    height, width = (-(-side // factor) * factor for side in latent[1:])
    net = _params_for(given["params"]["unet_config"], shapes.latent[0], channels)
    params = {
        **given["params"],
        "unet_config": {**given["params"]["unet_config"], "params": net},
        "image_size": [height, width],
        "channels": channels,
    }
    if "first_stage_config" in params:
        params["first_stage_config"] = IdentityFirstStage(latent_channels=channels)
    with torch.device("meta"):
        model = instantiate_model({**given, "params": params})
    batch = {}
    z = torch.empty(1, channels, height, width, device="meta")
    for key, shape in shapes.conditions.items():
        if isinstance(shape, int):
            batch[key] = torch.zeros(1, dtype=torch.long, device="meta")
        elif len(shape) == 3:  # a map beside the latent
            batch[key] = torch.empty(1, shape[0], height, width, device="meta")
        else:
            batch[key] = torch.empty(1, *shape, device="meta")
    cond, t = model.conditioner(batch), torch.zeros(1, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.model(z, t, cond)
    return DenoisingCost(counter.get_total_flops() / 1e9, (channels, height, width))


def _params_for(unet: dict[str, Any], before: int, channels: int) -> dict[str, Any]:
    """A network's parameters for latents of other channels; a condition beside them stays."""
    params = dict(unet.get("params") or {})
    params["in_channels"] = params.get("in_channels", before) - before + channels
    params["out_ch" if "out_ch" in params else "out_channels"] = channels
    return params


def _downsampling(block: dict[str, Any]) -> int:
    with torch.device("meta"):
        model = instantiate_model(block)
    return int(getattr(model.model.diffusion_model, "downsample_factor", 1))
