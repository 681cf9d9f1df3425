"""Guidance by what CLIP sees in an image: how much it is like a text (arXiv:2103.00020)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from ldm.nets.clip import normalization, normalized_pixels

__all__ = ["CLIPDissimilarity"]


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
        object.__setattr__(self, "_normal", normalization(self.text.device))

    def __call__(self, image: Tensor) -> Tensor:
        """The loss (B,), in [-1, 1], of images (B, C, H, W) in [-1, 1]."""
        seen = self.embed(normalized_pixels(image, self.size, self._normal))
        return -F.cosine_similarity(seen.float(), self.text.float(), dim=1)
