"""Checks of a classifier before it is trained: its classes, its labels, its network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.config import ConfigError
from ldm.models.classifier import LatentClassifier
from ldm.tensor import to_image_tensor

__all__ = ["check_class_count", "check_example"]


def check_class_count(model: LatentClassifier, classes: int | None) -> None:
    """The classifier must have the classes of the training data, where that has a list of them."""
    if classes is not None and classes != model.num_classes:
        raise ConfigError(
            f"model.params.num_classes: {model.num_classes}, but the data has {classes} classes; "
            f"expected {classes}, and as many out_channels of the network"
        )


def check_example(
    model: LatentClassifier, sample: Mapping[str, Any], image: Tensor, origin: str
) -> None:
    """The label of an example must be a class, and the network must take its latent.

    model: on the meta device.  image: (H, W, C) or (H, W).
    origin: place of the example's set in the configuration.
    """
    label = sample[model.label_key]
    where = f"{origin}: {model.label_key!r}, which model.params.label_key names, is"
    try:
        labels = torch.as_tensor(label)[None]
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(label).__name__
        raise ConfigError(f"{where} of type {kind}; expected an integer class label") from error
    try:
        model.require_labels(labels)
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from error
    z = model.encode(to_image_tensor(image[None]).to("meta"))
    try:
        found = model.logits(z, torch.zeros(1, dtype=torch.int64, device="meta")).shape
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{origin}: what is classified, {_size(z)}, does not fit unet_config: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if found != (1, model.num_classes):
        raise ConfigError(
            f"model.params.unet_config: gives {tuple(found[1:])} for an example; expected logits "
            f"({model.num_classes},), as num_classes says"
        )


def _size(z: Tensor) -> str:
    channels, height, width = z.shape[1:]
    return f"{channels} channels of {height} x {width}"
