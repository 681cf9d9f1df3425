"""Diffusion models under Lightning: wiring only. What is wired is built in `assemble`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ldm.config import with_key
from ldm.diffusion.denoiser import DiffusionWrapper, NetDenoiser, NoisedCondition
from ldm.diffusion.draws import Draws, normal_like
from ldm.diffusion.times import Uniform
from ldm.models.diffusion.assemble import (
    Components,
    Config,
    DDPMConfig,
    LatentDiffusionConfig,
    assemble,
)
from ldm.models.diffusion.condition import encoders_of
from ldm.models.diffusion.previews import previews
from ldm.models.diffusion.published import PublishedMethods
from ldm.models.diffusion.sampling import sample
from ldm.models.diffusion.scale import given_scale
from ldm.models.diffusion.validation import LossByTime
from ldm.models.ema import EMA
from ldm.models.one_optimizer import ADAMW, VALIDATION_SEED, OneOptimizer
from ldm.models.restore import restore_weights
from ldm.models.scaled_latents import ScaledLatents
from ldm.tensor import sent_to
from ldm.types import LossTerms

__all__ = ["DDPM", "DiffusionWrapper", "LatentDiffusion"]

Batch = Mapping[str, Any]


class DDPM(PublishedMethods, OneOptimizer):
    """A diffusion model in the space of its images (arXiv:2006.11239).

    Parameters: see `DDPMConfig`, in the component form or the published one.

    Set by the command line: `learning_rate` (per optimizer step, not scaled further) and `seed`
    (of times and noise; an example's depend on seed, step and its `sample_id` alone).
    """

    model: DiffusionWrapper
    logvar: Tensor | None  # (T,), a parameter where it is learned; None where it is 0
    cond_ids: Tensor | None  # (T,), time of the condition's noise for each time; None without it

    def __init__(self, **config: Unpack[DDPMConfig]) -> None:
        super().__init__()
        self._wire(config, assemble(config, DDPMConfig))
        self._restore(config)

    def _wire(self, config: Config, parts: Components) -> None:
        self.model = DiffusionWrapper(parts.net, parts.conditioning_key)
        self.schedule = parts.schedule
        self.objective = parts.objective
        self.sampler = parts.sampler
        self.conditioner = parts.conditioner
        if isinstance(self.objective.times, nn.Module):
            self.times = self.objective.times  # registered: what it has learned is saved
        if isinstance(parts.logvar, nn.Parameter):
            self.logvar = parts.logvar
        else:
            self.register_buffer("logvar", parts.logvar, persistent=False)
        self.register_buffer("cond_ids", parts.condition_times, persistent=False)
        self.model_ema = (
            EMA(self.model, config.get("ema_decay", 0.9999))
            if config.get("use_ema", True)
            else None
        )
        self.first_stage_key = config.get("first_stage_key", "image")
        self.image_size = config.get("image_size", 256)
        self.channels = config.get("channels", 3)
        self.clip_denoised = config.get("clip_denoised", True)
        self.log_every_t = config.get("log_every_t", 100)
        self.monitor = config.get("monitor", "val/loss")
        self.optimizer_config = config.get("optimizer_config") or ADAMW
        self.scheduler_config = config.get("scheduler_config")
        self.val_losses = LossByTime(self.schedule)

    def _restore(self, config: Config) -> None:
        if not config.get("ckpt_path"):
            return
        only = "model.diffusion_model." if config.get("load_only_unet") else None
        with with_key("ckpt_path"):
            ignored = config.get("ignore_keys", ())
            restore_weights(self, config["ckpt_path"], ignore=ignored, only=only)

    # what is diffused: images here, latents in LatentDiffusion

    def encode(self, images: Tensor, draws: Draws | None = None) -> Tensor:
        """What is diffused, of unit scale, for images (B, C, H, W); here the images themselves."""
        return images

    def decode(self, z: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] of what was diffused; the inverse of `encode`."""
        return z

    # denoisers

    @property
    def denoiser(self) -> NetDenoiser:
        """The network that is trained."""
        return NetDenoiser(self.model, self.schedule, self.objective.parameterization)

    @property
    def ema_denoiser(self) -> NetDenoiser:
        """The averaged network; the trained one in a model without an average."""
        net = self.model if self.model_ema is None else self.model_ema.module
        return NetDenoiser(net, self.schedule, self.objective.parameterization)

    def told(self, denoiser: NetDenoiser, draws: Draws) -> NetDenoiser:
        """The denoiser with noise in what it is told, where `num_timesteps_cond` says so."""
        if self.cond_ids is None:
            return denoiser
        net, schedule, predicts = denoiser.net, denoiser.schedule, denoiser.parameterization
        return NoisedCondition(net, schedule, predicts, times=self.cond_ids, draws=draws)

    # training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch, the mean over its examples."""
        draws = self.draws(batch, batch_idx, step=self.global_step)
        z = self.encode(self.get_input(batch), draws)
        cond = self.conditioner(batch, draws=draws)
        denoiser = self.told(self.denoiser, draws)
        terms = self.objective(denoiser, z, cond, draws=draws, logvar=self.logvar)
        return self._report(terms)

    def _report(self, terms: LossTerms) -> Tensor:
        means = {f"train/{name}": part.detach().mean() for name, part in terms.parts.items()}
        loss = terms.total.mean()
        size = len(terms.total)
        self.log_dict(means | {"train/loss": loss.detach()}, batch_size=size)
        self.log("loss", means["train/loss_simple"], prog_bar=True, logger=False, batch_size=size)
        return loss

    def learned_parameters(self) -> list[nn.Parameter]:
        """Everything the optimizer moves: the network, and the log-variance if it is learned."""
        logvar = [self.logvar] if isinstance(self.logvar, nn.Parameter) else []
        return [*self.model.parameters(), *logvar]

    def on_fit_start(self) -> None:
        """Load what encoders of the condition left out, before the first step."""
        self.conditioner.prepare()

    # validation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Losses at times and noise that are each example's own, the same in every validation."""
        draws = self.draws(batch, batch_idx, seed=VALIDATION_SEED)
        z = self.encode(self.get_input(batch), draws)
        cond = self.conditioner(batch)
        t, _ = Uniform().sample(sent_to(draws.uniform("t"), z.device), self.schedule)
        eps = normal_like(draws, z, "eps")
        for denoiser, suffix in self._validated():
            told = self.told(denoiser, draws)
            terms = self.objective.at(told, z, cond, t=t, eps=eps, logvar=self.logvar)
            self.val_losses.update(t, terms, suffix)

    def _validated(self) -> list[tuple[NetDenoiser, str]]:
        averaged = [] if self.model_ema is None else [(self.ema_denoiser, "_ema")]
        return [(self.denoiser, ""), *averaged]

    # sampling

    sample = sample

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of what is diffused, in its cells, as it was trained."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    log_images = previews  # what the image logger calls

    def compile_networks(self) -> None:
        """Compile the network that is trained and the averaged one, without touching their keys."""
        for denoiser in (self.denoiser, self.ema_denoiser):
            assert isinstance(denoiser.net, DiffusionWrapper)
            denoiser.net.compile_network()


class LatentDiffusion(ScaledLatents, DDPM):
    """A diffusion model in the latent space of a frozen first stage (arXiv:2112.10752).

    Parameters: see `LatentDiffusionConfig`, in the component form or the published one.
    """

    cond_stage_model: nn.Module  # absent from a model without a condition

    def __init__(self, **config: Unpack[LatentDiffusionConfig]) -> None:
        pl.LightningModule.__init__(self)
        config = {"monitor": "val/loss_simple_ema", "clip_denoised": False, **config}
        parts = assemble(config, LatentDiffusionConfig)
        self.channels = parts.first_stage.latent_channels
        self._wire({"channels": self.channels, **config}, parts)
        self.first_stage_model = parts.first_stage.eval().requires_grad_(False)
        self.cond_stage_trainable = config.get("cond_stage_trainable", False)
        self._trained_encoders = parts.trained_encoders
        if parts.cond_stage is not None:
            self.cond_stage_model = parts.cond_stage
        self._wire_scale(config)
        self._restore(config)

    def _wire_scale(self, config: Config) -> None:
        scale = given_scale(config)
        self.scale_by_std = config.get("scale_by_std", False)
        # a checkpoint of a whole model brings the scale that its network was trained at
        self._is_restored = bool(config.get("ckpt_path")) and not config.get("load_only_unet")
        if isinstance(scale, Tensor):
            self.register_buffer("scale_factor", scale)
        else:
            self.scale_factor = scale

    def train(self, mode: bool = True) -> LatentDiffusion:
        """The frozen parts stay in evaluation mode."""
        super().train(mode)
        self.first_stage_model.eval()
        for encoder in encoders_of(getattr(self, "cond_stage_model", None)).values():
            if encoder not in self._trained_encoders:
                encoder.eval()
        return self

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Images (B, C, H, W) of scaled latents (B, c, h, w)."""
        images: Tensor = self.first_stage_model.decode(z / self.scale_factor)
        return images

    def learned_parameters(self) -> list[nn.Parameter]:
        """As without a first stage, and those of the encoders tau_theta that are trained."""
        tau = [p for encoder in self._trained_encoders for p in encoder.parameters()]
        return [*super().learned_parameters(), *tau]
