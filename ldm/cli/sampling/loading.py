"""The diffusion model of a run, ready to draw."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ldm.cli.rundir import model_files
from ldm.cli.running import device_of
from ldm.config import (
    ConfigError,
    check,
    instantiate_model,
    load,
    model_block,
    to_plain,
    trust,
    with_key,
    without_checkpoints,
)
from ldm.models.restore import restore_weights

__all__ = ["checkpoint_and_block", "load_model"]


def load_model(args: argparse.Namespace, checkpoint: Path, block: dict[str, Any]) -> Any:
    """A model with the weights of a checkpoint, in evaluation mode on its device.

    Raises ConfigError: a checkpoint of another model, no such device.
    """
    device = device_of(args.device)
    # the run's checkpoint holds the weights of all parts
    model = instantiate_model(block)
    if not hasattr(model, "sample"):
        raise ConfigError(
            f"{args.run}: holds a {type(model).__name__}, which draws nothing by itself; give the "
            "run of a diffusion model"
        )
    restore_weights(model, checkpoint)
    return model.to(device).eval()


def checkpoint_and_block(args: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The checkpoint of a run, and the configuration of its model without other checkpoints.

    Raises ConfigError: no such run, or no configuration that holds.
    """
    for package in args.trust:
        trust(package)
    checkpoint, files = model_files(args.run, args.config)
    config = load(files)
    with with_key(str(files[-1])):
        block = to_plain(without_checkpoints(model_block(config)))
    check({"model": block})
    return checkpoint, block
