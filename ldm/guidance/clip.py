"""Guidance by what CLIP sees in an image: how much it is like a text (arXiv:2103.00020)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["CLIPDissimilarity", "to_clip_pixels"]

# of the pixels that CLIP was trained on, red, green, blue in [0, 1]
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class CLIPDissimilarity:
    """Minus the cosine of the angle between CLIP's embeddings of an image and of a text.

    A loss of `ImageGuided`, whose density is then p(text | x0) ~ exp(scale cosine): CLIP was
    trained with that very form, and its own scale is 100.

    embed: differentiable, pixels as `to_clip_pixels` makes them (B, 3, size, size) to embeddings
    (B, D).  text: embeddings (B, D), or one for all (1, D).  size: side that CLIP takes, in pixels.
    """

    embed: Callable[[Tensor], Tensor]
    text: Tensor
    size: int
    # beside the embeddings: from the host's memory each evaluation would wait for the device
    _normal: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Bring the numbers that pixels are normalized by to where the embeddings are."""
        object.__setattr__(self, "_normal", _normal(self.text.device))

    def __call__(self, image: Tensor) -> Tensor:
        """The loss (B,), in [-1, 1], of images (B, C, H, W) in [-1, 1]."""
        seen = self.embed(_clip_pixels(image, self.size, self._normal))
        return -F.cosine_similarity(seen.float(), self.text.float(), dim=1)


def to_clip_pixels(image: Tensor, size: int) -> Tensor:
    """Images as CLIP takes them: (B, 3, size, size), zero mean and unit variance per channel.

    The shorter side is resized to `size`, bicubic with antialiasing, and the square in the centre
    is what is seen, as CLIP was trained; differentiable. Values are clamped to the range of an
    image first, so that nothing is gained by leaving it.

    image: (B, 3, H, W), or grey (B, 1, H, W), in [-1, 1].
    Raises ValueError for another number of channels.
    """
    return _clip_pixels(image, size, _normal(image.device))


def _normal(device: torch.device) -> Tensor:
    """Mean and standard deviation of CLIP's pixels, (2, 1, 3, 1, 1)."""
    return torch.tensor([MEAN, STD], device=device)[:, None, :, None, None]


def _clip_pixels(image: Tensor, size: int, normal: Tensor) -> Tensor:
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
