"""Images as CLIP's networks take them (arXiv:2103.00020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["MEAN", "STD", "normalization", "normalized_pixels", "to_clip_pixels"]

# of the pixels that CLIP was trained on, red, green, blue in [0, 1]
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def to_clip_pixels(image: Tensor, size: int) -> Tensor:
    """Images as CLIP takes them: (B, 3, size, size), zero mean and unit variance per channel.

    The shorter side is resized to `size`, bicubic with antialiasing, and the square in the centre
    is what is seen, as CLIP was trained; differentiable. Values are clamped to the range of an
    image first, so that nothing is gained by leaving it.

    image: (B, 3, H, W), or grey (B, 1, H, W), in [-1, 1].
    Raises ValueError for another number of channels.
    """
    return normalized_pixels(image, size, normalization(image.device))


def normalization(device: torch.device) -> Tensor:
    """Mean and standard deviation of CLIP's pixels, (2, 1, 3, 1, 1)."""
    return torch.tensor([MEAN, STD], device=device)[:, None, :, None, None]


def normalized_pixels(image: Tensor, size: int, normal: Tensor) -> Tensor:
    """The same, with the numbers of `normalization` on the images' device already."""
    channels, height, width = image.shape[1:]
    if channels not in (1, 3):
        raise ValueError(f"images have {channels} channels, expected 1 or 3, which CLIP sees")
    # black and white are -1 and 1, and CLIP's numbers are of 0 and 1
    image = (image.float().clamp(-1, 1) + 1) / 2
    factor = size / min(height, width)
    sides = [max(size, round(side * factor)) for side in (height, width)]
    if sides != [height, width]:
        image = F.interpolate(image, size=sides, mode="bicubic", antialias=True)
    top, left = ((side - size) // 2 for side in sides)
    image = image[..., top : top + size, left : left + size].expand(-1, 3, -1, -1)
    return (image - normal[0]) / normal[1]
