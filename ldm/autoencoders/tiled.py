"""A first stage applied window by window, for images that do not fit in memory at once.

The window bounds the memory, overlaps are blended (`ldm.tiling`). Normalisation and attention of
the networks then see a window instead of the image, so the result differs slightly from that of
the whole image; networks without either give the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from ldm.autoencoders.base import WrappedFirstStage, require_encoding
from ldm.autoencoders.posterior import DiagonalGaussian
from ldm.tiling import Weights, Window, tiled_apply

__all__ = ["Tiled"]


@dataclass(frozen=True)
class Tiled(WrappedFirstStage):
    """A first stage in overlapping windows; itself a `FirstStage`.

    window, stride: (height, width) in latent cells; the same windows serve encoder and decoder.
    weights: how overlaps are blended, by default `BorderWeights()`.
    """

    window: tuple[int, int] = (64, 64)
    stride: tuple[int, int] = (48, 48)
    weights: Weights | None = None

    def encode(self, x: Tensor) -> DiagonalGaussian | Tensor:
        """Encode images (B, C, H, W); of a posterior, the moments are blended.

        Raises ValueError when H or W is not a multiple of the downsampling factor.
        """
        has_posterior = False

        def moments(crop: Tensor, _: Window) -> Tensor:
            nonlocal has_posterior
            encoding = self.first_stage.encode(crop)
            require_encoding(encoding)
            has_posterior = isinstance(encoding, DiagonalGaussian)
            return encoding.parameters if isinstance(encoding, DiagonalGaussian) else encoding

        factor = self.downsample_factor
        height, width = (factor * side for side in self.window)
        down, right = (factor * side for side in self.stride)
        blended = tiled_apply(
            moments,
            x,
            window=(height, width),
            stride=(down, right),
            scale=Fraction(1, factor),
            weights=self.weights,
        )
        return DiagonalGaussian(blended) if has_posterior else blended

    def decode(self, z: Tensor) -> Tensor:
        """Decode latents (B, c, h, w)."""
        return tiled_apply(
            lambda crop, _: self.first_stage.decode(crop),
            z,
            window=self.window,
            stride=self.stride,
            scale=self.downsample_factor,
            weights=self.weights,
        )
