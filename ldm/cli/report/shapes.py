"""Tables of what a model is told and makes: shapes from pixels to latents and back, a sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.cli.report.sections import Section, amount
from ldm.models.diffusion.ddpm import DDPM
from ldm.models.first_stage_module import FirstStageModule
from ldm.tensor import to_image_tensor

__all__ = ["parameter_table", "sample_table", "shape_table"]

_SHOWN = 60  # letters of a caption


def shape_table(model: Any, sample: Mapping[str, Any]) -> Section:
    """Shapes (C, H, W) of one example on its way through a model on the meta device."""
    table = Section("shapes")
    key = getattr(model, "first_stage_key", None) or model.image_key
    images = to_image_tensor(torch.as_tensor(sample[key])[None]).to("meta")
    _row(table, f"image ({key})", images)
    with torch.no_grad():
        if isinstance(model, FirstStageModule):
            made = model.autoencode(images, None)
            _row(table, "latent", made.z)
            _row(table, "reconstruction", made.reconstruction)
            return table
        z = model.encode(images)
        _row(table, "latent", z)
        net = model.model.diffusion_model if isinstance(model, DDPM) else model.model
        for part in getattr(getattr(model, "conditioner", None), "parts", ()):
            width = part.embedder.embed_dim
            told = f"{type(part.embedder).__name__}, {part.slot}"
            table.add(f"condition {part.key}", told + (f", {width} wide" if width else ""))
        for name, text in (
            ("in_channels", "UNet in, channels"),
            ("out_channels", "UNet out, channels"),
            ("context_dim", "UNet context, width"),
            ("adm_in_channels", "UNet vector, width"),
        ):
            value = getattr(net, name, None)
            if value is not None:
                table.add(text, str(value), value)
        if isinstance(model, DDPM):
            _row(table, "decoded", model.decode(z))
    return table


def _row(table: Section, name: str, value: Tensor) -> None:
    shape = list(value.shape[1:])
    table.add(name, " x ".join(map(str, shape)), shape)


def sample_table(split: str, data: Any, sample: Mapping[str, Any], *, is_made: bool) -> Section:
    """What the first example of a set holds."""
    table = Section(f"first example of {split}")
    if is_made:
        table.add("made up", "the data is not there")
    else:
        table.add("of", f"{type(data).__name__}, {len(data)} examples", len(data))
    for key, value in sample.items():
        table.add(key, _told(value))
    return table


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray) and value.ndim:
        span = f", {value.min():.4g} to {value.max():.4g}" if value.size else ""
        return f"{value.dtype} ({', '.join(map(str, value.shape))}){span}"
    text = str(value)
    if isinstance(value, str):
        text = repr(value if len(value) <= _SHOWN else value[:_SHOWN] + "...")
    return text


def parameter_table(model: Any) -> Section:
    """Parameters of each part of a model, and whether they learn."""
    table = Section("parameters")
    for name, part in model.named_children():
        parameters = list(part.parameters())
        if not parameters:
            continue
        total = sum(p.numel() for p in parameters)
        learning = sum(p.numel() for p in parameters if p.requires_grad)
        how = "frozen" if not learning else "trained"
        if learning and learning != total:
            how = f"{amount(learning, '')} of them trained"
        table.add(name, f"{amount(total, '')}, {how}", {"all": total, "trained": learning})
    return table
