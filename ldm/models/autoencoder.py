"""First stages: KL and VQ autoencoders, and none at all.

Section 3.1 of the latent diffusion paper (arXiv:2112.10752). Images are (B, C, H, W) in [-1, 1],
latents (B, c, h, w) with H = f h. Training is in `first_stage_module`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from ldm.autoencoders.posterior import DiagonalGaussian
from ldm.config import ConfigError, build
from ldm.diffusion.draws import Draws
from ldm.losses.equivariance import Transform
from ldm.memory import in_parts
from ldm.models.first_stage_module import Batch, FirstStageModule
from ldm.models.first_stage_options import FirstStageOptions
from ldm.models.first_stage_step import Autoencoded, MicroBatch
from ldm.models.logging import log_is_due
from ldm.nets.codebook_window import CodebookCounts, CodebookWindow, count_codes
from ldm.nets.quantizer import Quantizer, VectorQuantizer
from ldm.ranges import Positive
from ldm.ranks import gathered, own_part

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
        """Images to look at, (B, C, H, W) in [-1, 1], made one by one.

        `samples` decodes latents drawn from N(0, I). With the usual small KL weight the latents
        are not N(0, I), so these show texture, not images: drawing latents is what the diffusion
        model will learn.
        """
        images = self.get_input(batch).to(self.device)
        if only_inputs:
            return {"inputs": self.to_rgb(images)}
        z = in_parts(lambda x: self.encode(x).mode(), images, 1).to(images.device)
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(self.seed)).to(z)
        return {
            "inputs": self.to_rgb(images),
            "reconstructions": self.to_rgb(in_parts(self.decode, z, 1).to(z.device)),
            "samples": self.to_rgb(in_parts(self.decode, noise, 1).to(z.device)),
        }


class VQModel(FirstStageModule):
    """Autoencoder whose latents are entries of a codebook.

    n_embed: entries of the codebook.  embed_dim: their width c, the channels of the latent.
    ddconfig, lossconfig: see `FirstStageModule`; `double_z` must be false.
    remap: `.npy` file of the codes in use; codes are then numbered among these.
    sane_index_shape: codes are (B, h, w), not flat.
    quantizer_config: another `Quantizer`, or its configuration, of n_embed codes and embed_dim
    channels; without it, the published `VectorQuantizer`. It says itself what `remap` and
    `sane_index_shape` would.

    Training logs how much of the codebook is used, see `CodebookUse`: `train/codebook_usage` and
    `train/codebook_perplexity` of the last 65536 codes, as often as the trainer logs; validation
    `val/codebook_usage`, `val/perplexity` and `val/codebook_codes` of all its codes.
    """

    quantize: Quantizer

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: object,
        n_embed: Positive,
        embed_dim: Positive,
        remap: str | None = None,
        sane_index_shape: bool = False,
        quantizer_config: object = None,
        **options: Unpack[FirstStageOptions],
    ) -> None:
        super().__init__(ddconfig, lossconfig, **options)
        if ddconfig.get("double_z", True):
            raise ConfigError("ddconfig.double_z: a VQ autoencoder needs it to be false")
        z_channels = ddconfig["z_channels"]
        if quantizer_config is None:
            # published: beta weights the codebook term of the loss, see VectorQuantizer
            self.quantize = VectorQuantizer(
                n_embed,
                embed_dim,
                beta=0.25,
                remap=_codes(remap),
                sane_index_shape=sane_index_shape,
            )
        else:
            given = {"remap": remap, "sane_index_shape": sane_index_shape}
            self.quantize = _quantizer(quantizer_config, n_embed, embed_dim, given)
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        self.embed_dim = self.latent_channels = embed_dim
        self.n_embed = n_embed
        self._window = CodebookWindow(self.quantize.num_indices)
        self._validated: dict[str, CodebookCounts] = {}  # by what names begin with
        self._complete()

    def encode_to_prequant(self, x: Tensor) -> Tensor:
        """Latents of images before quantization."""
        latent: Tensor = self.quant_conv(self.encoder(x))
        return latent

    def encode(self, x: Tensor) -> Any:
        """Quantized latents, the quantizer's loss (0-d) and its info, whose last entry is codes."""
        return self.quantize(self.encode_to_prequant(x))

    def decode(self, quant: Tensor) -> Tensor:
        """Images of quantized latents."""
        return self._decode(quant)

    def decode_code(self, codes: Tensor) -> Tensor:
        """Images of codes (B, h, w)."""
        return self._decode(self.quantize.get_codebook_entry(codes, (*codes.shape, self.embed_dim)))

    def forward(
        self, x: Tensor, return_pred_indices: bool = False
    ) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
        """Reconstructions and the quantizer's loss; the codes as well, if asked for."""
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
        """Reconstruct the quantized latents; in a training pass the window takes in their codes.

        A quantizer that draws its codes does so by the numbers of the stream; no other draws
        anything, but that `remap` with `unknown_index: random` numbers the codes that are not in
        use by torch's global generator, as published.
        """
        prequant, noise = self.encode_to_prequant(images), None
        if draws is not None and (shape := self.quantize.noise_shape(prequant)) is not None:
            noise = draws.normal(shape, stream)
        quant, loss, (_, _, codes) = self.quantize(prequant, noise)
        if self.quantize.learns_from(prequant):
            self._window.add(codes)
        decoded = self._decode(quant if transform is None else transform.of_latents(quant))
        return Autoencoded(decoded, quant, loss, codes)

    @torch.no_grad()
    def log_images(self, batch: Batch, only_inputs: bool = False, **_: object) -> dict[str, Tensor]:
        """Images to look at, (B, C, H, W) in [-1, 1]."""
        images = self.get_input(batch).to(self.device)
        shown = {"inputs": self.to_rgb(images)}
        if not only_inputs:
            made = in_parts(lambda x: self.autoencode(x, None).reconstruction, images, 1)
            shown["reconstructions"] = self.to_rgb(made.to(images.device))
        return shown

    def _decode(self, quant: Tensor) -> Tensor:
        image: Tensor = self.decoder(self.post_quant_conv(quant))
        return image

    def _move_players(self, batches: Sequence[MicroBatch], step: int) -> dict[str, Tensor]:
        self.quantize.begin_step(step, self.seed)
        metrics = super()._move_players(batches, step)
        self.quantize.end_step()
        # `train_only` freezes the codebook, and no pass counts
        if self.quantize.training and log_is_due(self.trainer, step):
            use = self._window.use(self.device)
            metrics |= {"codebook_usage": use.usage, "codebook_perplexity": use.perplexity}
        return metrics

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the last codes as well, and latents that wait for k-means, of all ranks."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["first_stage"] |= {
            "codes": gathered(self._window.codes()),
            "latents": gathered(self.quantize.collected()),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them up again."""
        super().on_load_checkpoint(checkpoint)
        kept = checkpoint.get("first_stage", {})
        if "codes" in kept:
            self._window.restore(own_part(kept["codes"]))
            self.quantize.restore_collected(own_part(kept["latents"]))

    def on_validation_epoch_start(self) -> None:
        """Begin to count codes."""
        self._count_anew("val")

    def on_test_epoch_start(self) -> None:
        """Begin to count codes."""
        self._count_anew("test")

    def _count_anew(self, split: str) -> None:
        # on every rank alike, as they are summed over all, even over one that had no batch
        splits = [split] if self.model_ema is None else [split, f"{split}_ema"]
        size = self.quantize.num_indices
        self._validated = {name: CodebookCounts(size, self.device) for name in splits}

    def on_validation_epoch_end(self) -> None:
        """Log how much of the codebook the codes of all batches and ranks used."""
        names = ("codebook_usage", "perplexity", "codebook_codes")
        for split, counts in self._validated.items():
            logged = zip(names, counts.use(), strict=True)
            self.log_dict({f"{split}/{name}": value for name, value in logged}, sync_dist=True)
        self._validated = {}

    def on_test_epoch_end(self) -> None:
        """Log the same for a test."""
        self.on_validation_epoch_end()

    def _measures(self, images: Tensor, made: Autoencoded, split: str) -> dict[str, Tensor]:
        measures = super()._measures(images, made, split)
        assert made.codes is not None
        self._validated[split].add(made.codes)
        # published: the number of codes that a batch uses; perplexity is that of all batches
        measures.pop("perplexity", None)
        used = count_codes(made.codes, self.quantize.num_indices) > 0
        return measures | {"cluster_usage": used.sum()}


def _quantizer(
    config: object, n_embed: int, embed_dim: int, given: Mapping[str, object]
) -> Quantizer:
    """The quantizer of `quantizer_config`, which must be of this size."""
    for name, value in given.items():
        if value:
            raise ConfigError(
                f"{name}: {value!r} beside quantizer_config, where it has no effect; "
                "give it to the quantizer, if that takes it"
            )
    quantizer = build(config, path="quantizer_config")
    if not isinstance(quantizer, Quantizer):
        kind = type(quantizer).__name__
        raise ConfigError(f"quantizer_config: expected a ldm.nets.quantizer.Quantizer, got {kind}")
    sizes = {
        "embed_dim": (embed_dim, quantizer.e_dim, "channels"),
        "n_embed": (n_embed, quantizer.num_codes, "codes"),
    }
    for name, (want, found, what) in sizes.items():
        if want != found:
            kind = type(quantizer).__name__
            raise ConfigError(f"quantizer_config: {kind} has {found} {what}, but {name}={want}")
    return quantizer


def _codes(path: str | None) -> Tensor | None:
    if path is None:
        return None
    if not Path(path).is_file():
        raise ConfigError(f"remap: there is no file {path}")
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (ValueError, TypeError, EOFError) as error:  # TypeError: of an archive of arrays
        raise ConfigError(f"remap: {path} holds no array of numbers, as .npy: {error}") from error


class VQModelInterface(VQModel):
    """VQ autoencoder as diffusion uses it: its latents are those before quantization."""

    def encode(self, x: Tensor) -> Tensor:
        """Latents of images, not quantized."""
        return self.encode_to_prequant(x)

    def decode(self, h: Tensor, force_not_quantize: bool = False) -> Tensor:
        """Images of latents, which are quantized first unless that is forbidden."""
        return self._decode(h if force_not_quantize else self.quantize(h)[0])


class IdentityFirstStage(nn.Module):
    """No first stage: diffusion runs on pixels (LDM-1).

    vq_interface: `quantize` returns what a quantizer would.  latent_channels: of the images.
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
        """The images, and no loss and no codes where a quantizer is expected."""
        return (x, None, [None, None, None]) if self.vq_interface else x

    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
        """The images themselves."""
        return x
