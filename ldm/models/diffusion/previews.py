"""Pictures of a diffusion model for the image logger: data, condition, noise, samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from ldm.conditioning.conditioner import Part
from ldm.conditioning.spatial import are_labels
from ldm.data.layouts import layout_picture
from ldm.data.maps import coloured
from ldm.diffusion.draws import normal_like
from ldm.memory import in_parts
from ldm.ranges import Positive
from ldm.samplers.base import Step
from ldm.tensor import to_image_tensor
from ldm.types import Prediction

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import DDPM
    from ldm.models.diffusion.sampling import SampleOptions

__all__ = ["map_picture", "previews", "text_image"]


def previews(
    model: DDPM,
    batch: Mapping[str, Any],
    *,
    split: str = "train",
    steps: Positive = 50,
    scale: float | None = None,
    denoise_row: bool = False,
    diffusion_row: bool = False,
    micro_batch: Positive | None = None,
) -> dict[str, Tensor]:
    """Pictures of one small batch, name to (B, C, H, W) in [-1, 1], on the CPU.

    inputs, reconstructions: what the first stage gets and gives back.  conditioning_<key>: each
    entry that the model is told, texts and layouts as pictures, maps of labels in colours.
    samples: with the averaged weights, from the same seeds every time.  samples_guided: with
    classifier-free guidance of `scale` (3 where the model was trained for it), when there is a
    condition to follow.
    denoise_row: estimates of x0 during sampling.  diffusion_row: inputs with more and more noise.
    micro_batch: rows that the network is given at once, two for each image that is guided; all by
        default. The pictures are the same, to rounding. Images are decoded one by one.
    """
    images = model.get_input(batch)
    together = micro_batch or 2 * len(images)
    z = in_parts(model.encode, images, together).to(images.device)
    pictures = {"inputs": images.cpu(), "reconstructions": in_parts(model.decode, z, 1)}
    pictures |= _conditions(model, batch, images)
    if diffusion_row:
        pictures["diffusion_row"] = _diffusion_row(model, z)
    condition = batch if model.conditioner.parts else None
    options: SampleOptions = {"steps": steps, "size": (z.shape[-2], z.shape[-1]), "decode_batch": 1}
    estimates: list[Tensor] = []

    def record(step: Step, x: Tensor, prediction: Prediction) -> None:
        if denoise_row and step.index % max(step.count // 8, 1) == 0:
            estimates.append(prediction.x0[:1])

    seeds = range(len(images))
    parts = [seeds[i : i + together] for i in range(0, len(images), together)]
    pictures["samples"] = _samples(model, parts, condition, {**options, "callback": record})
    if estimates:
        of_first = estimates[: len(estimates) // len(parts)]
        pictures["denoise_row"] = in_parts(model.decode, torch.cat(of_first), 1)
    if scale is None and any(part.embedder.drop_rate for part in model.conditioner.parts):
        scale = 3.0
    if scale is not None and condition is not None:
        half = max(together // 2, 1)
        parts = [seeds[i : i + half] for i in range(0, len(images), half)]
        pictures["samples_guided"] = _samples(model, parts, condition, {**options, "scale": scale})
    return pictures


def _samples(
    model: DDPM,
    parts: Sequence[range],
    condition: Mapping[str, Any] | None,
    options: SampleOptions,
) -> Tensor:
    """Samples of the seeds of all parts, (B, C, H, W) on the CPU, drawn part by part."""
    drawn = []
    for part in parts:
        told = condition and {
            key: value[part.start : part.stop] for key, value in condition.items()
        }
        drawn.append(model.sample(part, told, **options).cpu())
    return torch.cat(drawn)


def _conditions(model: DDPM, batch: Mapping[str, Any], images: Tensor) -> dict[str, Tensor]:
    """Each entry the conditioner reads, as far as it can be shown."""
    pictures = {}
    for part in model.conditioner.parts:
        value = batch.get(part.key)
        if part.embedder.reads == "layout" and isinstance(value, list):
            pictures[f"conditioning_{part.key}"] = _layouts(value, images)
        elif isinstance(value, Tensor) and value.ndim == 3 and are_labels(value):
            pictures[f"conditioning_{part.key}"] = map_picture(value)
        elif isinstance(value, Tensor) and _are_images(value, part):
            shown = to_image_tensor(value)
            pictures[f"conditioning_{part.key}"] = _as_large_as(
                images, shown if shown.shape[1] in (1, 3) else shown[:, :1]
            )
        elif value is not None and part.key != model.first_stage_key:
            texts = [str(each) for each in (value.tolist() if isinstance(value, Tensor) else value)]
            size = max(images.shape[-1], 128)
            pictures[f"conditioning_{part.key}"] = text_image(texts, size)
    return pictures


def _are_images(value: Tensor, part: Part) -> bool:
    """Whether an entry is (B, H, W, C), or (B, H, W) of one channel where images are read."""
    return value.ndim == 4 or (value.ndim == 3 and part.slot == "concat")


def _layouts(layouts: Sequence[Tensor], images: Tensor) -> Tensor:
    """Boxes with the labels of their classes, as large as the images, or large enough to read."""
    height, width = images.shape[-2:]
    factor = -(-128 // min(height, width))
    pages = [layout_picture(each.cpu(), height * factor, width * factor) for each in layouts]
    return to_image_tensor(torch.from_numpy(np.stack(pages)))


def map_picture(labels: Tensor) -> Tensor:
    """Maps of labels (B, H, W) in colours: (B, 3, H, W) in [-1, 1]."""
    return to_image_tensor(torch.from_numpy(coloured(labels.cpu().numpy()))).to(labels.device)


def _diffusion_row(model: DDPM, z: Tensor, count: int = 8) -> Tensor:
    """The first example at growing noise, decoded: (count, C, H, W)."""
    times = np.linspace(model.schedule.t_min, model.schedule.t_max, count)
    is_discrete = model.schedule.num_timesteps is not None
    t = model.schedule.tensor_of(times.round() if is_discrete else times, z)
    first = z[:1].expand(count, -1, -1, -1)
    eps = normal_like(model.draws({"sample_id": [0] * count}, seed=0), first, "eps")
    return in_parts(model.decode, model.schedule.noised(first, eps, t), 1)


def text_image(texts: Sequence[str], size: int) -> Tensor:
    """Each text as a white picture with black letters: (B, 3, size, size) in [-1, 1]."""
    pages = []
    for text in texts:
        page = Image.new("RGB", (size, size), "white")
        width = max(size // 6, 1)  # letters of the default font are 6 pixels wide
        lines = [text[i : i + width] for i in range(0, len(text), width)]
        ImageDraw.Draw(page).multiline_text((2, 2), "\n".join(lines), fill="black")
        pages.append(np.asarray(page))
    return to_image_tensor(torch.from_numpy(np.stack(pages)))


def _as_large_as(images: Tensor, shown: Tensor) -> Tensor:
    """Pictures (B, C, h, w), each pixel repeated where they are smaller than the images."""
    height, width = images.shape[-2:]
    if shown.shape[-2] >= height or shown.shape[-1] >= width:
        return shown
    return F.interpolate(shown, size=(height, width), mode="nearest")
