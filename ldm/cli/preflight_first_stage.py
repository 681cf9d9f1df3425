"""Checks of a first stage before it is trained: of what only its training needs."""

from __future__ import annotations

from pathlib import Path

import torch

from ldm.config import ConfigError
from ldm.io.checkpoint import load_state
from ldm.losses.autoencoder import FirstStageLoss
from ldm.losses.perceptual import LPIPS, VGG16_FILE
from ldm.models.first_stage_module import PRECISIONS, FirstStageModule

__all__ = ["check_perceptual", "check_precision", "check_transforms"]

SHORT = {"32": "32-true", "bf16": "bf16-mixed"}  # Lightning's other names


def check_precision(precision: object) -> None:
    """The precision must be one that a first stage trains in, on every device.

    Lightning would train in bf16 on a CPU where fp16 is asked for.
    """
    if precision is not None and SHORT.get(str(precision), precision) not in PRECISIONS:
        raise ConfigError(
            f"lightning.trainer: precision={precision}: a first stage trains in {PRECISIONS}"
        )


def check_transforms(model: FirstStageModule, side: int) -> None:
    """Equivariance may make images of the training set smaller, but not too small for the loss.

    side: the shorter one of an image, pixels.
    """
    if not isinstance(model.loss, FirstStageLoss):
        return
    if sides := model.options["batch_resize_range"]:
        side = sides[0]
    try:
        model.require_transformable(side)
    except ConfigError as error:
        raise ConfigError(f"model.params.{error}") from error


def check_perceptual(model: FirstStageModule, *, is_resumed: bool) -> None:
    """LPIPS must have weights: of a file that can be read, or of a checkpoint.

    model: on the meta device, where it reads no file.
    """
    lpips = getattr(model.loss, "perceptual_loss", None)
    if not isinstance(lpips, LPIPS):
        return
    path = Path(torch.hub.get_dir()) / "checkpoints" / VGG16_FILE
    if lpips.weights is not None:
        path = Path(lpips.weights).expanduser()
    try:
        if path.is_file():
            load_state(path)
            LPIPS(path)
        elif not is_resumed:
            lpips.require_weights()
    except (RuntimeError, ValueError) as error:  # the former: tensors of other shapes
        message = " ".join(str(error).split())
        raise ConfigError(f"model.params.lossconfig.params.lpips_weights: {message}") from error
