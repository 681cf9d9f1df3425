"""The networks that a job draws with, brought to what its flags ask for."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from ldm.config import ConfigError
from ldm.nets.precision import hold_products_in

__all__ = ["prepare_networks"]


def prepare_networks(model: Any, args: argparse.Namespace) -> None:
    """Hold the weights in the precision of products, and compile the networks.

    The model's network and that of `--weak`, as far as the flags ask for it. What bf16 draws stays
    the same to the last bit. ConfigError for CUDA graphs away from CUDA.
    """
    if args.compile == "graphs" and model.device.type != "cuda":
        raise ConfigError(
            f"--compile graphs: CUDA graphs need a CUDA device, the model is on {model.device}; "
            "--compile alone compiles there too"
        )
    denoisers = [model.ema_denoiser if args.weights == "ema" else model.denoiser]
    if args.weak_model is not None:
        denoisers.append(args.weak_model.denoiser)
    for denoiser in denoisers:
        if args.precision == "bf16":
            hold_products_in(denoiser.net, torch.bfloat16)
        if args.compile is not None:
            denoiser.net.compile_network(as_graphs=args.compile == "graphs")
