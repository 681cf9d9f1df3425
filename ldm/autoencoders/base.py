"""What the second stage needs of a first stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from ldm.autoencoders.posterior import DiagonalGaussian

__all__ = ["FirstStage", "WrappedFirstStage", "first_latent", "require_encoding"]


@runtime_checkable
class FirstStage(Protocol):
    """Encoder and decoder between images and the latents that diffusion runs on.

    Images are (B, C, H, W) in [-1, 1], latents (B, c, h, w) with H = f h and W = f w.
    downsample_factor: f, image pixels per latent cell along one side.
    latent_channels: c.
    """

    downsample_factor: int
    latent_channels: int

    def encode(self, x: Tensor) -> DiagonalGaussian | Tensor:
        """The posterior over latents (KL), or the latent before quantization (VQ, identity)."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """The image of an unscaled latent; a VQ first stage quantizes it first."""
        ...


@dataclass(frozen=True)
class WrappedFirstStage:
    """A first stage that is run in another way, with its factor and its channels."""

    first_stage: FirstStage

    @property
    def downsample_factor(self) -> int:
        """Image pixels per latent cell along one side."""
        return self.first_stage.downsample_factor

    @property
    def latent_channels(self) -> int:
        """Channels of the latent."""
        return self.first_stage.latent_channels


def first_latent(encoding: DiagonalGaussian | Tensor, noise: Tensor | None = None) -> Tensor:
    """One unscaled latent (B, c, h, w) of what a first stage's `encode` returned.

    noise: (B, c, h, w) standard normal, for a sample of the posterior; without it, its mode.
    Raises TypeError for what is neither, see `require_encoding`.
    """
    require_encoding(encoding)
    if isinstance(encoding, Tensor):
        return encoding
    return encoding.mode() if noise is None else encoding.sample(noise)


def require_encoding(encoding: object) -> None:
    """Raise TypeError for what is neither a latent nor a posterior.

    A `VQModel` encodes to (latent, loss, codes), which its training needs; to diffusion it is a
    `VQModelInterface`, of the same weights.
    """
    if isinstance(encoding, DiagonalGaussian | Tensor):
        return
    hint = "; a VQ first stage is used as VQModelInterface" if isinstance(encoding, tuple) else ""
    kind = type(encoding).__name__
    raise TypeError(f"encode gave a {kind}, expected a latent or a posterior{hint}")
