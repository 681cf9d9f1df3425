"""A first stage for images of any size, such as those that a reconstruction is judged on.

Encoders take multiples of their factor f. Here an image is continued by reflection to the next
multiple, below and on the right, and what comes back is cut to its size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.autoencoders.base import WrappedFirstStage, first_latent
from ldm.autoencoders.posterior import DiagonalGaussian

__all__ = ["Padded", "reflected"]


@dataclass(frozen=True)
class Padded(WrappedFirstStage):
    """A first stage that takes images of any size; itself a `FirstStage`.

    Latents are those of the padded image, (B, c, ceil(H / f), ceil(W / f)). They do not know the
    size that it had, so `decode` is told.
    """

    def encode(self, x: Tensor) -> DiagonalGaussian | Tensor:
        """Encode images (B, C, H, W) of any size, as the first stage does."""
        factor = self.downsample_factor
        height, width = (-(-side // factor) * factor for side in x.shape[-2:])
        return self.first_stage.encode(reflected(x, height, width))

    def decode(self, z: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Decode latents (B, c, h, w) to (B, C, H, W).

        size: (H, W) of the image before it was padded; by default the whole, (f h, f w).
        """
        image = self.first_stage.decode(z)
        return image if size is None else image[..., : size[0], : size[1]]

    def reconstruct(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) of any size, encoded to their most likely latents and decoded."""
        return self.decode(first_latent(self.encode(x)), (x.shape[-2], x.shape[-1]))


def reflected(x: Tensor, height: int, width: int) -> Tensor:
    """Images (B, C, H, W) continued to (B, C, height, width), below and on the right.

    The last row and column are mirrors and not repeated, as in `torch.nn.functional.pad`; unlike
    there, an image may be continued by more than its own size.
    """
    rows, columns = (
        _mirrored(long, short, x.device)
        for long, short in zip((height, width), x.shape[-2:], strict=True)
    )
    return x.index_select(-2, rows).index_select(-1, columns)


def _mirrored(length: int, size: int, device: torch.device) -> Tensor:
    """0, 1, ..., size - 1, size - 2, ..., 1, 0, 1, ..., so many of it."""
    period = max(2 * (size - 1), 1)
    position = torch.arange(length, device=device) % period
    return torch.minimum(position, period - position)
