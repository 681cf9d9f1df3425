"""The less trained model of `--weak`, which autoguidance leads away from."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch

from ldm.cli.sampling.loading import checkpoint_and_block, load_model
from ldm.config import ConfigError
from ldm.diffusion.denoiser import Denoiser
from ldm.io.digest import sha256_of
from ldm.models.pairing import require_same_space
from ldm.types import Conditioning

__all__ = ["Weak", "load_weak"]


@dataclass(frozen=True)
class Weak:
    """A weak model, and what it is told of a batch: by its own encoders, trained with it.

    denoiser: with the weights that `--weights` says.  sha256: of its checkpoint.
    """

    model: Any
    denoiser: Denoiser
    sha256: str

    @torch.no_grad()
    def told(self, batch: dict[str, Any] | None) -> tuple[Conditioning | None, Conditioning | None]:
        """Its condition of a batch, and what "no condition" is to it; None for neither."""
        conditioner = self.model.conditioner
        if batch is None or not conditioner.parts:
            return None, None
        return conditioner(batch), conditioner.null(batch)


def load_weak(args: argparse.Namespace, model: Any) -> Weak:
    """The model of `--weak`.

    Raises ConfigError for one of other latents or another schedule, and for one that is told what
    the model is not. One that is told less is told less.
    """
    own = argparse.Namespace(**{**vars(args), "run": args.weak, "config": None})
    checkpoint, block = checkpoint_and_block(own)
    weak = load_model(own, checkpoint, block)
    try:
        require_same_space(weak, model)
    except ValueError as error:
        raise ConfigError(f"--weak {args.weak}: {error}") from error
    known = {(part.key, part.embedder.reads) for part in model.conditioner.parts}
    for part in weak.conditioner.parts:
        if (part.key, part.embedder.reads) not in known:
            raise ConfigError(
                f"--weak {args.weak}: is told {part.key} ({type(part.embedder).__name__}), which "
                f"{args.run} is not; expected a model that is told the same, or less"
            )
    weak.conditioner.prepare()
    denoiser: Denoiser = weak.ema_denoiser if args.weights == "ema" else weak.denoiser
    return Weak(weak, denoiser, sha256_of(checkpoint))
