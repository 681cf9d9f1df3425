"""Checks of a model's encoders, and where the configuration has each of them."""

from __future__ import annotations

from typing import Any

from torch import nn

from ldm.conditioning.boxes import BoxMap
from ldm.conditioning.conditioner import Part
from ldm.conditioning.hybrid import HybridConditioner
from ldm.conditioning.labels import ClassEmbedder
from ldm.conditioning.layout import LayoutEmbedder
from ldm.config import ConfigError

__all__ = ["check_classes", "encoder_path"]


def encoder_path(model: Any, part: Part) -> str:
    """Where the configuration has the encoder of a part: alone, in a list, or in a published pair.

    model.params.cond_stage_config, the same with .0, or with .params.c_concat_config.
    """
    path = "model.params.cond_stage_config"
    encoders = getattr(model, "cond_stage_model", None)
    if isinstance(encoders, nn.ModuleList):
        places = {id(encoder): f"{path}.{index}" for index, encoder in enumerate(encoders)}
    elif isinstance(encoders, HybridConditioner):
        places = {
            id(encoders.concat_conditioner): f"{path}.params.c_concat_config",
            id(encoders.crossattn_conditioner): f"{path}.params.c_crossattn_config",
        }
    else:
        places = {}
    return places.get(id(part.embedder), path)


def check_classes(model: Any, classes: int | None) -> None:
    """Labels must have rows of their own in the table, beside the null class.

    classes: of the data, None where it has none.  Raises ConfigError.
    """
    for part in getattr(getattr(model, "conditioner", None), "parts", ()):
        if classes is None:
            continue
        if isinstance(part.embedder, LayoutEmbedder | BoxMap):
            part.embedder.require_classes(classes, encoder_path(model, part))
        elif isinstance(part.embedder, ClassEmbedder):
            _check_rows(part.embedder, classes, encoder_path(model, part))


def _check_rows(embedder: ClassEmbedder, classes: int, path: str) -> None:
    rows = embedder.null_label + 1
    needed = classes + (embedder.drop_rate > 0)
    if rows < needed:
        raise ConfigError(
            f"{path}.params.n_classes: {rows}, but the data has {classes} classes"
            + (" and drop_rate needs one more row" if needed > classes else "")
        )
