"""A classifier of noisy latents from its run, to guide a diffusion model towards classes."""

from __future__ import annotations

import argparse
from typing import Any

from ldm.cli.sampling.loading import checkpoint_and_block
from ldm.config import ConfigError, instantiate_from_config
from ldm.io.digest import sha256_of
from ldm.models.classifier import LatentClassifier

__all__ = ["load_classifier"]


def load_classifier(args: argparse.Namespace, model: Any) -> tuple[LatentClassifier, str]:
    """The classifier of `--classifier` on the model's device, and the SHA-256 of its checkpoint.

    Raises ConfigError: no such run, no classifier, or one of other latents than the model draws.
    """
    told = argparse.Namespace(**{**vars(args), "run": args.classifier, "config": None})
    checkpoint, block = checkpoint_and_block(told)
    params = {**block.get("params", {}), "ckpt_path": str(checkpoint)}
    classifier = instantiate_from_config({"target": block["target"], "params": params})
    if not isinstance(classifier, LatentClassifier):
        raise ConfigError(
            f"--classifier {args.classifier}: holds a {type(classifier).__name__}, expected a "
            "LatentClassifier"
        )
    try:
        classifier.require_same_space(model)
    except ValueError as error:
        raise ConfigError(f"--classifier {args.classifier}: {error}") from error
    # without gradients of its own weights, which nobody asks for
    return classifier.to(model.device).eval().requires_grad_(False), sha256_of(checkpoint)
