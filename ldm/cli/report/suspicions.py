"""What can be trained but is hardly meant, and metrics that will not be there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ldm.cli.report.finding import Severity
from ldm.config import did_you_mean
from ldm.models.classifier import LatentClassifier
from ldm.models.diffusion.ddpm import DDPM
from ldm.models.first_stage_module import FirstStageModule
from ldm.models.first_stage_validation import measures
from ldm.tensor import to_image_tensor

__all__ = ["check_monitor", "unreached_steps", "unused_attention", "validation_metrics"]

_BY_TIME = re.compile(r"_t[\d.]+-[\d.]+")
_OF_CODES = ("codebook_usage", "perplexity", "codebook_codes")

Said = tuple[str, str]  # path, message


def validation_metrics(model: Any, sample: Mapping[str, Any]) -> set[str]:
    """Names of what validation logs; those by time are left out.

    model: on the meta device.
    """
    if isinstance(model, FirstStageModule):
        images = to_image_tensor(torch.as_tensor(sample[model.image_key])[None]).to("meta")
        with torch.no_grad():
            made = model.autoencode(images, None)
            names = set(measures(model.loss, images, made=made, step=model.loss.disc_start))
        names |= {"sharpness", *(_OF_CODES if made.codes is not None else ())}
        prefixes = ("val/", "val_ema/") if model.model_ema is not None else ("val/",)
        return {prefix + name for prefix in prefixes for name in names}
    names = {"loss", "accuracy"} if isinstance(model, LatentClassifier) else {"loss", "loss_simple"}
    if isinstance(model, DDPM):
        if getattr(model.logvar, "requires_grad", False):
            names.add("loss_gamma")
        objective = model.objective
        if objective.elbo is not None and (
            objective.elbo_weight or model.schedule.num_timesteps is not None
        ):
            names.add("loss_vlb")
    endings = ("", "_ema") if model.model_ema is not None else ("",)
    return {f"val/{name}{ending}" for name in names for ending in endings}


def check_monitor(
    model: Any, sample: Mapping[str, Any], lightning: Mapping[str, Any]
) -> Iterator[Said]:
    """The metric that decides which checkpoints are best must be one that validation logs."""
    params = (lightning.get("modelcheckpoint") or {}).get("params") or {}
    path = "lightning.modelcheckpoint.params.monitor"
    monitor = params.get("monitor")
    if monitor is None:
        path, monitor = "model.params.monitor", getattr(model, "monitor", None)
    known = validation_metrics(model, sample)
    if monitor is not None and _BY_TIME.sub("", monitor) not in known:
        near = did_you_mean(monitor, known) or f"; there are {', '.join(sorted(known))}"
        yield path, f"{monitor!r} is nothing that validation logs{near}"


def unused_attention(model: Any, block: Mapping[str, Any]) -> Iterator[Said]:
    """Resolutions of attention that no level of a network has."""
    params = block.get("params") or {}
    for name, key in (("unet_config.params", "attention_resolutions"),):
        unet = (params.get("unet_config") or {}).get("params") or {}
        levels = len(unet.get("channel_mult") or (1, 2, 4, 8))
        yield from _unused(
            f"model.params.{name}.{key}", unet.get(key), [2**i for i in range(levels)]
        )
    for name in ("ddconfig", "first_stage_config.params.ddconfig"):
        part: Any = params
        for key in name.split("."):
            part = (part or {}).get(key)
        if isinstance(part, Mapping) and isinstance(part.get("resolution"), int):
            levels = len(part.get("ch_mult") or (1,))
            sizes = [part["resolution"] // 2**i for i in range(levels)]
            yield from _unused(
                f"model.params.{name}.attn_resolutions", part.get("attn_resolutions"), sizes
            )


def _unused(path: str, asked: Any, there: list[int]) -> Iterator[Said]:
    never = [each for each in asked or () if each not in there] if isinstance(asked, list) else []
    if never:
        yield (
            path,
            f"{', '.join(map(str, never))} never occur{'s' * (len(never) == 1)}: the levels are "
            f"{', '.join(map(str, there))}, so there is no attention for it",
        )


def unreached_steps(
    model: Any, block: Mapping[str, Any], options: Mapping[str, Any]
) -> Iterator[tuple[Severity, str, str]]:
    """Steps at which something is to happen, after the end of training: severity, path, message.

    A game that never begins is often meant.
    """
    last = options.get("max_steps") or -1
    if last < 0:
        return
    loss = getattr(model, "loss", None)
    start = getattr(loss, "disc_start", None)
    given = ((block.get("params") or {}).get("lossconfig") or {}).get("params") or {}
    if start is not None and given.get("disc_factor", 1.0) and start >= last:
        path = "model.params.lossconfig.params.disc_start"
        told = f"{start}, but training ends at step {last}: the discriminator never joins"
        yield "note", path, told
    scheduler = (block.get("params") or {}).get("scheduler_config") or {}
    warm_up = (scheduler.get("params") or {}).get("warm_up_steps")
    first = warm_up[0] if isinstance(warm_up, list) and warm_up else warm_up
    if isinstance(first, int) and first >= last:
        path = "model.params.scheduler_config.params.warm_up_steps"
        told = f"{first}, but training ends at step {last}: the full rate is never reached"
        yield "warning", path, told
