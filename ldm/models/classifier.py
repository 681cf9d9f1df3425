"""A classifier of noisy latents, whose gradient guides a diffusion model (arXiv:2105.05233)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NotRequired, Required, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.config import ConfigError, build, with_key
from ldm.diffusion.draws import Draws, KeyedDraws, normal_like
from ldm.diffusion.times import Uniform
from ldm.io.checkpoint import load_into, load_state, select
from ldm.log import log
from ldm.models.diffusion.assemble import ProcessConfig, check_keys, schedule_of
from ldm.models.diffusion.scale import given_scale
from ldm.models.diffusion.validation import LossByTime
from ldm.models.ema import EMA
from ldm.models.one_optimizer import ADAMW, VALIDATION_SEED
from ldm.models.pairing import require_same_space
from ldm.models.scaled_latents import ScaledLatents
from ldm.ranges import Positive
from ldm.tensor import expand_to, sent_to
from ldm.types import LossTerms

__all__ = ["ClassifierConfig", "LatentClassifier"]

Batch = Mapping[str, Any]

QUARTERS = 4  # parts of the time axis that validation looks at one by one
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_SCALES = ("scale_factor", "scale_by_std", "latent_stats")


class ClassifierConfig(ProcessConfig, total=False):
    """Parameters of a classifier of noisy latents, or of noisy images.

    The process is that of the diffusion model which is to be guided.
    """

    # components: a `target:` with `params:`, or an object
    unet_config: Required[Any]  # the network: (x, timesteps) to logits (B, num_classes)
    num_classes: Required[Positive]  # number of classes; guidance's "no class" is none of them
    first_stage_config: NotRequired[Any]  # the autoencoder, frozen; none for noisy images
    optimizer_config: NotRequired[Any]  # AdamW, betas 0.9 and 0.999, weight decay 0.01
    scheduler_config: NotRequired[Any]  # learning-rate multiplier per optimizer step; constant

    # what is classified, and the scale of its latents, that of the diffusion model
    first_stage_key: NotRequired[str]  # batch entry that holds the image; image
    label_key: NotRequired[str]  # batch entry that holds the class, 0, 1, ...; class_label
    diffusion_ckpt_path: NotRequired[str | None]  # its checkpoint: brings first stage and scale
    scale_factor: NotRequired[float]  # multiplies the latents; 1
    scale_by_std: NotRequired[bool]  # measure 1 / std on the first batch instead; false
    latent_stats: NotRequired[str | None]  # or take it from this file of scripts/latent_stats.py

    # training
    use_ema: NotRequired[bool]  # keep a moving average of the network; false
    ema_decay: NotRequired[float]  # its decay per optimizer step; 0.9999
    ckpt_path: NotRequired[str | None]  # start from the weights of this classifier's checkpoint
    ignore_keys: NotRequired[list[str]]  # prefixes of its keys to leave out
    monitor: NotRequired[str | None]  # metric that decides which checkpoint is best; val/loss


class LatentClassifier(ScaledLatents):
    """A network that sees (z_t, t) and says which class z_0 is of: p(y | z_t).

    Trained by cross-entropy at uniform times and noise, each example's a function of the seed, the
    step and the example. Section 4 and appendix H of arXiv:2105.05233, on latents instead of
    images; without a first stage, on images.

    Parameters: see `ClassifierConfig`. The state dict holds the scale of the latents, whichever way
    it was given.
    """

    scale_factor: Tensor

    def __init__(self, **config: Unpack[ClassifierConfig]) -> None:
        super().__init__()
        check_keys(config, ClassifierConfig)
        # before the network, as in a diffusion model
        first_stage = build(config.get("first_stage_config"), path="first_stage_config")
        if first_stage is not None:
            first_stage.eval().requires_grad_(False)
        self.first_stage_model = first_stage
        self.num_classes = config["num_classes"]
        self.model: nn.Module = build(config["unet_config"], path="unet_config")
        self._check_network()
        self.schedule = schedule_of(config)
        has_average = config.get("use_ema", False)
        self.model_ema = EMA(self.model, config.get("ema_decay", 0.9999)) if has_average else None
        self.first_stage_key = config.get("first_stage_key", "image")
        self.label_key = config.get("label_key", "class_label")
        self.monitor = config.get("monitor", "val/loss")
        self.optimizer_config = config.get("optimizer_config") or ADAMW
        self.scheduler_config = config.get("scheduler_config")
        self.times = Uniform()
        self.val_losses = LossByTime(self.schedule, QUARTERS, by_time=("loss", "accuracy"))
        self._wire_scale(config)
        self._restore(config)

    def _check_network(self) -> None:
        """Refuse a network of other classes, or of other channels than the latents have."""
        found = getattr(self.model, "out_channels", self.num_classes)
        if found != self.num_classes:
            raise ConfigError(
                f"unet_config.params.out_channels: {found}, but num_classes is {self.num_classes}"
            )
        channels = getattr(self.first_stage_model, "latent_channels", None)
        found = getattr(self.model, "in_channels", channels)
        if channels is not None and found != channels:
            raise ConfigError(
                f"unet_config.params.in_channels: {found}, but "
                f"{type(self.first_stage_model).__name__} has latents of {channels} channels"
            )

    def _wire_scale(self, config: ClassifierConfig) -> None:
        given = [key for key in _SCALES if config.get(key)]
        if given and self.first_stage_model is None:
            raise ConfigError(
                f"{given[0]}: {config.get(given[0])}, but without first_stage_config there are no "
                "latents to scale"
            )
        self.scale_by_std = config.get("scale_by_std", False)
        self._is_restored = bool(config.get("ckpt_path") or config.get("diffusion_ckpt_path"))
        self.register_buffer("scale_factor", torch.as_tensor(given_scale(config)).float())

    def _restore(self, config: ClassifierConfig) -> None:
        if path := config.get("diffusion_ckpt_path"):
            with with_key("diffusion_ckpt_path"):
                self._take_latents_of(path, config)
        if path := config.get("ckpt_path"):
            with with_key("ckpt_path"):
                ignored = config.get("ignore_keys", ())
                report = load_into(self, load_state(path), ignore=ignored, source=path)
                log.info("%s: %d tensors loaded", path, report.matched)

    def _take_latents_of(self, path: str, config: ClassifierConfig) -> None:
        """First stage and scale of a latent diffusion model's checkpoint."""
        described = config.get("first_stage_config")
        params = described.get("params") if isinstance(described, Mapping) else None
        if described is None:
            raise ConfigError(f"{path}: brings a first stage, but first_stage_config has none")
        for name, value in (
            ("first_stage_config.params.ckpt_path", (params or {}).get("ckpt_path")),
            ("latent_stats", config.get("latent_stats")),
        ):
            if value:
                raise ConfigError(f"{path}: brings first stage and scale, as does {name}; give one")
        state = load_state(path)
        if self.first_stage_model.state_dict():
            weights = select(state, "first_stage_model.", source=path)
            load_into(self.first_stage_model, weights, ignore=("loss.",), source=path)
        scale = state.get("scale_factor")
        if scale is None and self.scale_by_std:
            raise ConfigError(
                f"{path}: holds no measured scale, so its model has a fixed one; give that as "
                "scale_factor, and leave out scale_by_std"
            )
        if scale is not None:
            given = config.get("scale_factor", float(scale))
            if not math.isclose(given, float(scale), rel_tol=1e-6):
                raise ConfigError(
                    f"{path}: has scale_factor {float(scale):g}, but {given:g} is given"
                )
            self.scale_factor = scale.float().reshape(())

    def train(self, mode: bool = True) -> LatentClassifier:
        """The frozen first stage stays in evaluation mode."""
        super().train(mode)
        if self.first_stage_model is not None:
            self.first_stage_model.eval()
        return self

    def encode(self, images: Tensor, draws: Draws | None = None) -> Tensor:
        """What noise is added to, (B, c, h, w), of images (B, C, H, W); see `ScaledLatents`."""
        return images if self.first_stage_model is None else super().encode(images, draws)

    # what guidance calls

    def log_prob(self, z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Logarithm of p(y | z_t) in nats, (B,); its gradient in z_t guides (section 4).

        z_t: (B, c, h, w), scaled latents with noise, as the diffusion model sees them.
        t: (B,) times of the schedule, whole or fractional.  labels: y, (B,) integers; on the CPU,
        where to look at them waits for nothing.

        Without autocast and in the precision of the weights, float32 unless they are of another;
        with the averaged weights where there are some.
        Raises ValueError for a label that is no class.
        """
        self.require_labels(labels)
        labels = sent_to(labels, z_t.device)
        network = self.model if self.model_ema is None else self.model_ema.module
        dtype = next((p.dtype for p in network.parameters()), torch.float32)
        with torch.autocast(z_t.device.type, enabled=False):
            logits = self.logits(z_t.to(dtype), t, network)
        return F.log_softmax(logits, dim=1).gather(1, labels.long()[:, None])[:, 0]

    def logits(self, z_t: Tensor, t: Tensor, network: nn.Module | None = None) -> Tensor:
        """Logits (B, num_classes), float32 or wider, of z_t (B, c, h, w) at times t (B,).

        network: the trained one by default.
        """
        scale = self.schedule.net_scale(t)
        x = z_t if scale is None else z_t * expand_to(scale, z_t)
        out: Tensor = (network or self.model)(x, self.schedule.net_time(t))
        return out if out.dtype == torch.float64 else out.float()

    def require_labels(self, labels: Tensor) -> None:
        """Raise ValueError unless every one of the labels (B,) is a class; waits for a GPU."""
        if labels.dtype not in _INTEGERS or labels.ndim != 1:
            kind = str(labels.dtype).removeprefix("torch.")
            raise ValueError(
                f"{self.label_key}: {kind} of shape {tuple(labels.shape)}; expected integers (B,)"
            )
        outside = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(outside):
            raise ValueError(
                f"{self.label_key}: {int(outside[0])}; expected 0 to {self.num_classes - 1}, as "
                f"num_classes is {self.num_classes}"
            )

    def require_same_space(self, diffusion: nn.Module) -> None:
        """Raise ValueError unless what a diffusion model draws is what this was trained on.

        diffusion: a `DDPM` or `LatentDiffusion`. Compared are schedule, scale and first stage; the
        message has the value of both.
        """
        require_same_space(self, diffusion)

    # training

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Refuse labels that are no classes while looking at them waits for no device."""
        try:
            self.require_labels(torch.as_tensor(batch[self.label_key]))
        except ValueError as error:
            raise ConfigError(f"a batch's {error}") from error
        return batch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of one batch in nats, the mean over its examples."""
        draws = self.draws(batch, batch_idx, step=self.global_step)
        z = self.encode(self.get_input(batch), draws)
        t, _ = self.times.sample(sent_to(draws.uniform("t"), z.device), self.schedule)
        z_t = self.schedule.noised(z, normal_like(draws, z, "eps"), t)
        terms = self._terms(self.logits(z_t, t), batch[self.label_key])
        loss = terms.total.mean()
        means = {"loss": loss.detach(), "accuracy": terms.parts["accuracy"].mean()}
        size = len(z)
        self.log_dict({f"train/{key}": mean for key, mean in means.items()}, batch_size=size)
        self.log("loss", means["loss"], prog_bar=True, logger=False, batch_size=size)
        return loss

    def _terms(self, logits: Tensor, labels: Tensor) -> LossTerms:
        """Cross-entropy in nats, and 1 where the likeliest class is the right one: (B,)."""
        loss = F.cross_entropy(logits, labels.long(), reduction="none")
        return LossTerms(loss, {"accuracy": (logits.argmax(dim=1) == labels).to(loss.dtype)})

    # validation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Each example once in every quarter of the times, the same ones in every validation."""
        draws = self.draws(batch, batch_idx, seed=VALIDATION_SEED)
        z = self.encode(self.get_input(batch), draws)
        averaged = [] if self.model_ema is None else [(self.model_ema.module, "_ema")]
        for quarter in range(QUARTERS):
            self._validate(batch, z, draws, quarter, [(self.model, ""), *averaged])

    def _validate(
        self,
        batch: Batch,
        z: Tensor,
        draws: KeyedDraws,
        quarter: int,
        networks: list[tuple[nn.Module, str]],
    ) -> None:
        u = sent_to((quarter + draws.uniform(f"t {quarter}")) / QUARTERS, z.device)
        t, _ = Uniform().sample(u, self.schedule)
        z_t = self.schedule.noised(z, normal_like(draws, z, f"eps {quarter}"), t)
        for network, suffix in networks:
            terms = self._terms(self.logits(z_t, t, network), batch[self.label_key])
            self.val_losses.update(t, terms, suffix)

    def compile_networks(self) -> None:
        """Compile the network that is trained and the averaged one, without touching their keys."""
        self.model.compile(dynamic=False)
        if self.model_ema is not None:
            self.model_ema.module.compile(dynamic=False)
