"""Checks of a model's encoders, and where the configuration has each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.conditioning.conditioner import Part
from ldm.conditioning.labels import ClassEmbedder, ClassLabels
from ldm.conditioning.layout import LayoutReader
from ldm.conditioning.retrieval import NeighbourEmbedder
from ldm.conditioning.vectors import VectorEmbedder
from ldm.config import ConfigError
from ldm.models.diffusion.condition import encoders_of

__all__ = ["check_classes", "check_told", "encoder_path"]

_MODEL = "model.params"
_NETWORK = f"{_MODEL}.unet_config.params"


def encoder_path(model: Any, part: Part) -> str:
    """Where the configuration has the encoder of a part: alone, in a list, or in a published pair.

    model.params.cond_stage_config, the same with .0, or with .params.c_concat_config.
    """
    places = encoders_of(getattr(model, "cond_stage_model", None))
    found = (place for place, encoder in places.items() if encoder is part.embedder)
    return f"{_MODEL}.{next(found, 'cond_stage_config')}"


def check_classes(model: Any, classes: int | None) -> None:
    """Labels must have rows of their own in the table, beside the null class.

    classes: of the training data, None where it has none.  Raises ConfigError.
    """
    for part in getattr(getattr(model, "conditioner", None), "parts", ()):
        if classes is None:
            continue
        if isinstance(part.embedder, LayoutReader):
            part.embedder.require_classes(classes, encoder_path(model, part))
        elif isinstance(part.embedder, ClassEmbedder | ClassLabels):
            _check_rows(part.embedder, classes, _rows_path(model, part))


def _rows_path(model: Any, part: Part) -> str:
    """The parameter that says how many rows the table of a part's labels has."""
    if part.embedder in encoders_of(model.cond_stage_model).values():
        return f"{encoder_path(model, part)}.params.n_classes"
    return f"{_NETWORK}.num_classes"  # an identity hands labels to the network, whose table counts


def _check_rows(embedder: ClassEmbedder | ClassLabels, classes: int, path: str) -> None:
    rows = embedder.null_label + 1
    needed = classes + (embedder.drop_rate > 0)
    if rows < needed:
        raise ConfigError(
            f"{path}: {rows}, but the data has {classes} classes (data.params.train)"
            + (" and drop_rate needs one more row" if needed > classes else "")
            + f"; expected at least {needed}"
        )


def check_told(model: Any, sample: Mapping[str, Any], origin: str) -> None:
    """Hold an example's entries against the encoders of tokens, vectors and labels.

    model: on the meta device.  origin: place of the example's set in the configuration.
    Of other encoders that say how wide their output is nothing is looked at.
    Raises ConfigError for a label that has no row, and for what the network does not take.
    """
    for part in getattr(getattr(model, "conditioner", None), "parts", ()):
        if part.embedder.reads == "label":
            _check_label(model, part, sample[part.key], origin)
        elif part.slot != "concat" and _is_open(part):
            _check_encoded(model, part, sample[part.key], origin)


def _is_open(part: Part) -> bool:
    """Whether only an example shows what becomes of the entry, and its encoder needs no weights."""
    given = VectorEmbedder | NeighbourEmbedder
    return part.embedder.embed_dim is None or isinstance(part.embedder, given)


def _check_label(model: Any, part: Part, value: Any, origin: str) -> None:
    """A label must be an integer with a row of its own."""
    null = getattr(part.embedder, "null_label", None)
    where = f"{origin}: {part.key!r}, which {type(part.embedder).__name__} reads, is"
    is_number = isinstance(value, int | np.integer) or (
        isinstance(value, np.ndarray | Tensor)
        and value.ndim == 0
        and not torch.as_tensor(value).is_floating_point()
    )
    if not is_number:
        raise ConfigError(f"{where} {_kind(value)}; expected an integer class label")
    if null is None:
        return
    last = null - (part.embedder.drop_rate > 0)
    if not 0 <= int(value) <= last:
        raise ConfigError(
            f"{_rows_path(model, part)}: {null + 1}, but {where} {int(value)}; expected labels "
            f"0 to {last}" + (" and the null class" if last < null else "")
        )


def _check_encoded(model: Any, part: Part, value: Any, origin: str) -> None:
    """What becomes of a tensor must be tokens or vectors as wide as the network takes them."""
    name, path = type(part.embedder).__name__, encoder_path(model, part)
    where = f"{origin}: {part.key!r} {_kind(value)}, which {name} encodes"
    if not isinstance(value, np.ndarray | Tensor | int | float | np.number):
        raise ConfigError(f"{where} ({path}), is no array")
    batch = torch.as_tensor(value)[None].to("meta")
    try:
        shape = part.embedder.encode(part.read({part.key: batch})).shape
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ConfigError(
            f"{where} ({path}), does not fit it: {str(error).splitlines()[0]}"
        ) from error
    dimensions = {"crossattn": (3, "tokens (N, D)"), "vector": (2, "a vector (D,)")}
    net = model.model.diffusion_model
    expected, form = dimensions[part.slot]
    if part.slot == "vector" and getattr(net, "num_classes", None) is not None:
        expected, form = 1, "a class label"
    if len(shape) != expected:
        raise ConfigError(
            f"{where} ({path}), becomes {tuple(shape[1:])}; expected {form}, for {part.slot!r}"
        )
    parameter = "context_dim" if part.slot == "crossattn" else "adm_in_channels"
    width = getattr(net, parameter, None)
    is_alone = sum(other.slot == part.slot for other in model.conditioner.parts) == 1
    if len(shape) > 1 and (part.slot == "crossattn" or is_alone) and shape[-1] != width:
        raise ConfigError(
            f"{_NETWORK}.{parameter}: {width}, but {where} ({path}), becomes {shape[-1]} wide; "
            f"expected {shape[-1]}"
        )


def _kind(value: Any) -> str:
    """What a value is, in words."""
    if isinstance(value, np.ndarray | Tensor):
        return f"of shape {tuple(value.shape)} and {value.dtype}".replace("torch.", "")
    return f"of type {type(value).__name__}"
