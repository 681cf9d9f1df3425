"""First stages: KL and VQ autoencoders, and none at all.

Section 3.1 of the latent diffusion paper (arXiv:2112.10752). Images are (B, C, H, W) in [-1, 1],
latents (B, c, h, w) with H = f h. Training is in `first_stage_module`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from ldm.autoencoders.posterior import DiagonalGaussian
from ldm.config import ConfigError
from ldm.diffusion.draws import Draws
from ldm.losses.equivariance import Transform
from ldm.losses.reconstruction import codebook_use
from ldm.models.first_stage_module import Batch, FirstStageModule
from ldm.models.first_stage_options import FirstStageOptions
from ldm.models.first_stage_step import Autoencoded
from ldm.nets.quantizer import VectorQuantizer
from ldm.ranges import Positive

__all__ = ["AutoencoderKL", "IdentityFirstStage", "VQModel", "VQModelInterface"]

QuantizerInfo = tuple[Tensor | None, Tensor | None, Tensor]


class AutoencoderKL(FirstStageModule):
    """Autoencoder whose latents are drawn from a Gaussian, kept near N(0, I) by a small KL term.

    embed_dim: channels c of the latent.  ddconfig, lossconfig: see `FirstStageModule`;
    `double_z` must be true, as the encoder predicts mean and log-variance.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: object,
        embed_dim: Positive,
        **options: Unpack[FirstStageOptions],
    ) -> None:
        super().__init__(ddconfig, lossconfig, **options)
        if not ddconfig.get("double_z", True):
            raise ConfigError("ddconfig.double_z: false, but a KL autoencoder needs 2 z_channels")
        z_channels = ddconfig["z_channels"]
        self.quant_conv = nn.Conv2d(2 * z_channels, 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        self.embed_dim = self.latent_channels = embed_dim
        self._complete()

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """Posterior q(z | x) of images."""
        return DiagonalGaussian(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents."""
        image: Tensor = self.decoder(self.post_quant_conv(z))
        return image

    def forward(self, x: Tensor, sample_posterior: bool = True) -> tuple[Tensor, DiagonalGaussian]:
        """Reconstructions and posterior; the latent is a sample, or the mode."""
        posterior = self.encode(x)
        return self.decode(posterior.sample() if sample_posterior else posterior.mode()), posterior

    def autoencode(
        self,
        images: Tensor,
        draws: Draws | None,
        transform: Transform | None = None,
        stream: str = "posterior",
    ) -> Autoencoded:
        """Reconstruct a sample of the posterior; without draws, its mode."""
        posterior = self.encode(images)
        if draws is None:
            z = posterior.mode()
        else:
            z = posterior.sample(draws.normal(posterior.mean.shape[1:], stream))
        decoded = self.decode(z if transform is None else transform.of_latents(z))
        return Autoencoded(decoded, z, posterior.kl())

    @torch.no_grad()
    def log_images(self, batch: Batch, only_inputs: bool = False, **_: object) -> dict[str, Tensor]:
        """Images to look at, (B, C, H, W) in [-1, 1].

        `samples` decodes latents drawn from N(0, I). With the usual small KL weight the latents
        are not N(0, I), so these show texture, not images: drawing latents is what the diffusion
        model will learn.
        """
        images = self.get_input(batch).to(self.device)
        if only_inputs:
            return {"inputs": self.to_rgb(images)}
        z = self.encode(images).mode()
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(self.seed)).to(z)
        return {
            "inputs": self.to_rgb(images),
            "reconstructions": self.to_rgb(self.decode(z)),
            "samples": self.to_rgb(self.decode(noise)),
        }


class VQModel(FirstStageModule):
    """Autoencoder whose latents are entries of a codebook.

    n_embed: entries of the codebook.  embed_dim: their width c, the channels of the latent.
    ddconfig, lossconfig: see `FirstStageModule`; `double_z` must be false.
    remap: `.npy` file of the codes in use; codes are then numbered among these.
    sane_index_shape: codes are (B, h, w), not flat.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: object,
        n_embed: Positive,
        embed_dim: Positive,
        remap: str | None = None,
        sane_index_shape: bool = False,
        **options: Unpack[FirstStageOptions],
    ) -> None:
        super().__init__(ddconfig, lossconfig, **options)
        if ddconfig.get("double_z", True):
            raise ConfigError("ddconfig.double_z: a VQ autoencoder needs it to be false")
        z_channels = ddconfig["z_channels"]
        # published: beta weights the codebook term of the loss, see VectorQuantizer
        self.quantize = VectorQuantizer(
            n_embed, embed_dim, beta=0.25, remap=_codes(remap), sane_index_shape=sane_index_shape
        )
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        self.embed_dim = self.latent_channels = embed_dim
        self.n_embed = n_embed
        self._complete()

    def encode_to_prequant(self, x: Tensor) -> Tensor:
        """Latents of images before quantisation."""
        latent: Tensor = self.quant_conv(self.encoder(x))
        return latent

    def encode(self, x: Tensor) -> Any:
        """Quantised latents, the quantiser's loss (0-d) and its info, whose last entry is codes."""
        return self.quantize(self.encode_to_prequant(x))

    def decode(self, quant: Tensor) -> Tensor:
        """Images of quantised latents."""
        return self._decode(quant)

    def decode_code(self, codes: Tensor) -> Tensor:
        """Images of codes (B, h, w)."""
        return self._decode(self.quantize.get_codebook_entry(codes, (*codes.shape, self.embed_dim)))

    def forward(
        self, x: Tensor, return_pred_indices: bool = False
    ) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
        """Reconstructions and the quantiser's loss; the codes as well, if asked for."""
        made = self.autoencode(x, None)
        assert made.codes is not None
        if return_pred_indices:
            return made.reconstruction, made.cost, made.codes
        return made.reconstruction, made.cost

    def autoencode(
        self,
        images: Tensor,
        draws: Draws | None,
        transform: Transform | None = None,
        stream: str = "posterior",
    ) -> Autoencoded:
        """Reconstruct the quantised latents; nothing is drawn."""
        quant, loss, (_, _, codes) = self.quantize(self.encode_to_prequant(images))
        decoded = self._decode(quant if transform is None else transform.of_latents(quant))
        return Autoencoded(decoded, quant, loss, codes)

    @torch.no_grad()
    def log_images(self, batch: Batch, only_inputs: bool = False, **_: object) -> dict[str, Tensor]:
        """Images to look at, (B, C, H, W) in [-1, 1]."""
        images = self.get_input(batch).to(self.device)
        shown = {"inputs": self.to_rgb(images)}
        if not only_inputs:
            shown["reconstructions"] = self.to_rgb(self.autoencode(images, None).reconstruction)
        return shown

    def _decode(self, quant: Tensor) -> Tensor:
        image: Tensor = self.decoder(self.post_quant_conv(quant))
        return image

    def _measures(self, images: Tensor, made: Autoencoded) -> dict[str, Tensor]:
        measures = super()._measures(images, made)
        assert made.codes is not None
        perplexity, used = codebook_use(made.codes, self.n_embed)
        return measures | {"perplexity": perplexity, "cluster_usage": used}


def _codes(path: str | None) -> Tensor | None:
    if path is None:
        return None
    if not Path(path).is_file():
        raise ConfigError(f"remap: there is no file {path}")
    return torch.from_numpy(np.load(path))


class VQModelInterface(VQModel):
    """VQ autoencoder as diffusion uses it: its latents are those before quantisation."""

    def encode(self, x: Tensor) -> Tensor:
        """Latents of images, not quantised."""
        return self.encode_to_prequant(x)

    def decode(self, h: Tensor, force_not_quantize: bool = False) -> Tensor:
        """Images of latents, which are quantised first unless that is forbidden."""
        return self._decode(h if force_not_quantize else self.quantize(h)[0])


class IdentityFirstStage(nn.Module):
    """No first stage: diffusion runs on pixels (LDM-1).

    vq_interface: `quantize` returns what a quantiser would.  latent_channels: of the images.
    Other arguments are accepted and ignored, as published.
    """

    downsample_factor = 1

    def __init__(
        self, *_: object, vq_interface: bool = False, latent_channels: int = 3, **__: object
    ) -> None:
        super().__init__()
        self.vq_interface = vq_interface
        self.latent_channels = latent_channels

    def encode(self, x: Tensor, *_: object, **__: object) -> Tensor:
        """The images themselves."""
        return x

    def decode(self, z: Tensor, *_: object, **__: object) -> Tensor:
        """The images themselves."""
        return z

    def quantize(self, x: Tensor, *_: object, **__: object) -> object:
        """The images, and no loss and no codes where a quantiser is expected."""
        return (x, None, [None, None, None]) if self.vq_interface else x

    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
        """The images themselves."""
        return x
