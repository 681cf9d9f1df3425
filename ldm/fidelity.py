"""How near reconstructions are to their images: one number for each pair."""

from __future__ import annotations

from typing import cast

from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from ldm.tensor import mean_flat

__all__ = ["psnr", "ssim"]


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,), of images (B, C, H, W) in [-1, 1].

    The peak is 2; an exact reconstruction counts 100 dB instead of infinity.
    """
    error = mean_flat((images.float() - _clamped(reconstructions)).square())
    return (4 / error.clamp_min(4e-10)).log10().mul(10)


def ssim(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Structural similarity, (B,), at most 1, of images (B, C, H, W) in [-1, 1].

    Wang et al. 2004, with a Gaussian window of 11 pixels and a deviation of 1.5; H, W >= 6.
    """
    similarity = structural_similarity_index_measure(
        _clamped(reconstructions), images.float(), data_range=2.0, reduction="none"
    )
    return cast("Tensor", similarity)


def _clamped(reconstructions: Tensor) -> Tensor:
    return reconstructions.float().clamp(-1, 1)
