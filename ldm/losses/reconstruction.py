"""Reconstruction error of a first stage: pixels, perceptual distance, likelihood, codebook use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.losses.perceptual import LPIPS
from ldm.nets.codebook_window import codebook_use_of, count_codes
from ldm.spelling import require_known
from ldm.tensor import mean_flat

__all__ = [
    "ReconstructionError",
    "check_pixel_loss",
    "codebook_use",
    "laplace_nll",
    "reconstruction_error",
]

PIXEL_LOSSES = ("l1", "l2")


@dataclass(frozen=True)
class ReconstructionError:
    """Error of a batch of reconstructions, all (B,).

    pixel: mean over pixels and channels of |x - x_hat| or its square.
    perceptual: LPIPS, 0 where it has no weight.
    mean: pixel + weight * perceptual, which is the mean over pixels of the published error map,
    in which LPIPS is added to every pixel and channel.
    """

    pixel: Tensor
    perceptual: Tensor
    mean: Tensor


def reconstruction_error(
    inputs: Tensor,
    reconstructions: Tensor,
    *,
    pixel_loss: str = "l1",
    perceptual_loss: LPIPS | None = None,
    perceptual_weight: float = 1.0,
) -> ReconstructionError:
    """Compare images (B, C, H, W) in [-1, 1] with their reconstructions."""
    difference = inputs.float() - reconstructions.float()
    pixel = mean_flat(difference.abs() if pixel_loss == "l1" else difference.square())
    if perceptual_loss is None or not perceptual_weight:
        return ReconstructionError(pixel, torch.zeros_like(pixel), pixel)
    perceptual = perceptual_loss(inputs, reconstructions).flatten()
    return ReconstructionError(pixel, perceptual, pixel + perceptual_weight * perceptual)


def check_pixel_loss(name: str) -> str:
    """The name, if it is `l1` or `l2`; ValueError for another."""
    require_known("pixel_loss", name, PIXEL_LOSSES)
    return name


def laplace_nll(error: Tensor, logvar: Tensor, elements: int) -> Tensor:
    """Negative log-likelihood in nats of images of `elements` numbers each: (B,).

    elements * (error / exp(logvar) + logvar), with `error` (B,) the mean per number and one
    `logvar` (0-d) for all: a Laplace density of scale exp(logvar), without its constant log 2.
    """
    return elements * (error / torch.exp(logvar) + logvar)


def codebook_use(indices: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Perplexity of the codes of a batch, and how many of them occur (int64); both 0-d.

    indices: integers, any shape; those outside 0..num_codes - 1 are not counted.  Perplexity is
    exp of the entropy: `num_codes` when all are used alike, 1 when only one is.
    """
    counts = count_codes(indices, num_codes)
    return codebook_use_of(counts).perplexity, (counts > 0).sum()
