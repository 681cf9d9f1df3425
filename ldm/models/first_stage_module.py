"""How a first stage is trained and validated under Lightning, whatever its latent space."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, Unpack

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ldm.config import ConfigError, build, to_plain, with_key
from ldm.diffusion.draws import Draws, KeyedDraws
from ldm.fidelity import Sharpness
from ldm.log import log
from ldm.losses.autoencoder import FirstStageLoss
from ldm.losses.equivariance import Equivariance, Transform
from ldm.models.ema import EMA
from ldm.models.first_stage_options import FirstStageOptions, checked_options, halves_of
from ldm.models.first_stage_step import (
    Autoencoded,
    MicroBatch,
    discriminator_gradients,
    generator_gradients,
    shared_gradients,
)
from ldm.models.first_stage_validation import measures
from ldm.models.first_stage_weights import load_first_stage
from ldm.models.logging import log_is_due
from ldm.models.optim import average_gradients, build_optimizer, clip_gradients, gradient_norm
from ldm.nets.compilation import compile_for_several_gradients
from ldm.ranks import mean_over_ranks, world_size
from ldm.safe_step import SafeStep, poison_unless_finite
from ldm.tensor import to_image_tensor

__all__ = ["FirstStageModule"]

Batch = Mapping[str, Any]

GENERATOR, DISCRIMINATOR = 0, 1
PLAYERS = ("autoencoder", "discriminator")
PRECISIONS = ("32-true", "bf16-mixed")
SPLITS = ("val", "val_ema", "test", "test_ema")


class FirstStageModule(pl.LightningModule, ABC):
    """A first stage, trained as one of two players; subclasses bring the latent space.

    Two players need manual optimization, so accumulation and clipping are this module's, not the
    trainer's. A step is one update of the generator: `trainer.global_step`, `max_steps`,
    `disc_start`, schedules and logs all count these, whatever is accumulated.

    ddconfig: arguments of `Encoder` and `Decoder`.  lossconfig: a `FirstStageLoss` or its
    configuration; with anything else the model can be used, not trained.

    Set by the command line: `learning_rate`, `accumulate_grad_batches`, `gradient_clip_val` and
    `gradient_clip_algorithm` (for each player), and `seed` of the latents' noise.
    """

    loss: FirstStageLoss  # or, in a model that is not trained, any module
    learning_rate: float = 4.5e-6
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: Literal["norm", "value"] = "norm"
    seed: int = 23
    safe_step: SafeStep | None = None  # set by the guard of a training
    watched_loss: Tensor | None = None  # of the last step, 0-d: the one that has no game in it

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: object,
        **options: Unpack[FirstStageOptions],
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.options = checked_options(options)
        self.encoder, self.decoder = halves_of(to_plain(ddconfig))
        self.loss = build(lossconfig, path="lossconfig")
        self.downsample_factor = self.encoder.downsample_factor
        self.image_key: str = self.options["image_key"]
        self.monitor: str | None = self.options["monitor"]
        self.equivariance: Equivariance | None = self.options["equivariance"]
        self.model_ema: EMA | None = None
        self.sharpness: Any = nn.ModuleDict({split: Sharpness() for split in SPLITS})
        self._held: list[MicroBatch] = []
        if labels := self.options["colorize_nlabels"]:
            colors = torch.randn(3, labels, 1, 1, generator=torch.Generator().manual_seed(0))
            self.register_buffer("colorize", colors)

    def _complete(self) -> None:
        """What is left to do once the networks are there: weights to start from, the average."""
        if path := self.options["ckpt_path"]:
            with with_key("ckpt_path"):
                self.init_from_ckpt(path, ignore_keys=self.options["ignore_keys"])
        for part in self._frozen():
            part.requires_grad_(False)
        if self.options["use_ema"]:
            self.model_ema = EMA(self.networks())

    def init_from_ckpt(self, path: str | Path, ignore_keys: Sequence[str] = ()) -> None:
        """Take over the networks' weights of a checkpoint, and what fits of its loss.

        Raises ConfigError when the file is none, or is of another model.
        """
        has_loss = load_first_stage(self, self.loss, path, ignore_keys=ignore_keys)
        if self.encoder.conv_in.weight.is_meta:  # a check, before the model is built for good
            return
        log.info("first stage from %s%s", path, " and what fits of its loss" if has_loss else "")

    @abstractmethod
    def autoencode(
        self,
        images: Tensor,
        draws: Draws | None,
        transform: Transform | None = None,
        stream: str = "posterior",
    ) -> Autoencoded:
        """Encode and decode images (B, C, H, W) in [-1, 1].

        The latent is drawn with the numbers of a stream; without draws it is the most likely one.
        transform: of the latent before it is decoded.
        """

    def networks(self) -> nn.ModuleDict:
        """The generator's parts, by the names they have here."""
        names = ("encoder", "decoder", "quantize", "quant_conv", "post_quant_conv")
        return nn.ModuleDict({name: getattr(self, name) for name in names if hasattr(self, name)})

    def _frozen(self) -> list[nn.Module]:
        """Networks that `train_only` keeps as they are."""
        if self.options["train_only"] is None:
            return []
        before = ("encoder", "quantize", "quant_conv")
        return [network for name, network in self.networks().items() if name in before]

    def train(self, mode: bool = True) -> Self:
        """Train or evaluate; what is frozen stays in eval mode."""
        super().train(mode)
        for part in self._frozen():
            part.eval()
        return self

    def generator_parameters(self) -> list[nn.Parameter]:
        """Everything the generator's optimizer moves."""
        return [*self.networks().parameters(), *self.loss.generator_parameters()]

    def compile_networks(self) -> None:
        """Compile what a step runs, for images of one size where they have one."""
        networks: list[nn.Module] = [self.encoder, self.decoder]
        if isinstance(self.loss, FirstStageLoss):
            networks.append(self.loss.discriminator)
            if self.loss.perceptual_loss is not None:
                networks.append(self.loss.perceptual_loss.net)
        for network in networks:
            # equivariance brings images of many sizes, for each of which it would compile anew
            dynamic = None if self.equivariance else False
            compile_for_several_gradients(network, dynamic=dynamic)

    def get_last_layer(self) -> nn.Parameter:
        """Weight of the decoder's last convolution, at which the losses are balanced."""
        return self.decoder.get_parameter("conv_out.weight")

    def get_input(self, batch: Batch, key: str | None = None) -> Tensor:
        """Images of a batch: (B, C, H, W) in [-1, 1]."""
        return to_image_tensor(batch[key or self.image_key])

    def to_rgb(self, images: Tensor) -> Tensor:
        """Images to look at, (B, 3, H, W) or (B, 1, H, W), of images with any channels.

        Label maps get the random colours of `colorize_nlabels`, stretched to [-1, 1]; of other
        images with more than three channels the first three are shown.
        """
        if not self.options["colorize_nlabels"]:
            return images if images.shape[1] in (1, 3) else images[:, :3]
        colored = F.conv2d(images, self.get_buffer("colorize"))
        low, high = colored.aminmax()
        return 2 * (colored - low) / (high - low) - 1

    # training

    def setup(self, stage: str) -> None:
        """Refuse to train or validate a model without a training objective."""
        if not isinstance(self.loss, FirstStageLoss):
            raise ConfigError(
                f"lossconfig: {type(self.loss).__name__} is no training objective; this model can "
                "be used but not trained. Take ldm.losses.autoencoder.LPIPSWithDiscriminator (KL) "
                "or ldm.losses.autoencoder.VQLPIPSWithDiscriminator (VQ)"
            )

    def on_fit_start(self) -> None:
        """Refuse what would fail or mislead later; make Lightning count as this module does."""
        self._held = []  # a training that ended within a step may have left some
        try:
            self.loss.require_weights()
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if (precision := self.trainer.precision) not in PRECISIONS:
            # float16 needs its losses scaled, which two players cannot share; weights in half
            # precision lose small updates
            raise ConfigError(f"precision={precision}: a first stage trains in {PRECISIONS}")
        if world_size() > 1 and not isinstance(self.trainer.strategy, DDPStrategy):
            name = type(self.trainer.strategy).__name__
            raise ConfigError(f"strategy {name}: a first stage trains on several devices with ddp")
        if self.options["train_only"] and not (self.options["ckpt_path"] or self.trainer.ckpt_path):
            log.warning("train_only: decoder, but no ckpt_path: the encoder stays as it was drawn")
        # refused as an argument of the trainer, but its loggers and estimates go by it
        self.trainer.accumulate_grad_batches = self.accumulate_grad_batches

    def on_fit_end(self) -> None:
        """Give the trainer back as it was."""
        self.trainer.accumulate_grad_batches = 1

    def configure_optimizers(self) -> tuple[list[Optimizer], list[LRScheduler]]:
        """The generator's and the discriminator's optimizer, each with its schedule, if any."""
        rates = (self.learning_rate * self.options["lr_g_factor"], self.learning_rate)
        players = (self.generator_parameters(), self.loss.discriminator.parameters())
        optimizers = [
            build_optimizer(parameters, rate, self.options["optimizer_config"])
            for parameters, rate in zip(players, rates, strict=True)
        ]
        if self.options["scheduler_config"] is None:
            return optimizers, []
        factor = build(self.options["scheduler_config"], path="scheduler_config")
        return optimizers, [LambdaLR(optimizer, factor) for optimizer in optimizers]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Hold micro-batches until a step is complete, then move both players."""
        step = self.trainer.global_step
        self._held.append(self._micro_batch(batch, step))
        is_complete = (batch_idx + 1) % self.accumulate_grad_batches == 0
        if not (is_complete or self.trainer.is_last_batch):
            return None
        batches, self._held = self._held, []
        metrics = self._move_players(batches, step)
        if self.equivariance is not None:
            is_transformed = batches[0].transform is not None
            metrics["equivariance"] = torch.full((), float(is_transformed), device=self.device)
        if self.model_ema is not None:
            held = self.safe_step is not None and self.safe_step.held_by(GENERATOR)
            self.model_ema.update(self.networks(), held)
        self.watched_loss = metrics["rec_loss"].detach()
        self._log_training(metrics, step, sum(batch.size for batch in batches))
        return metrics["total_loss"]

    def _micro_batch(self, batch: Batch, step: int) -> MicroBatch:
        images = self._resized(self.get_input(batch), step)
        keys = batch.get("sample_id")
        if keys is None:  # then reproducible only for this division into ranks and batches
            first = sum(held.size for held in self._held)
            keys = [f"{self.global_rank}/{first + i}" for i in range(len(images))]
        draws = KeyedDraws(keys, self.seed, step, images.device)
        return MicroBatch(images, draws, self._transform(images, step))

    def _transform(self, images: Tensor, step: int) -> Transform | None:
        """What this step does to the latents, the same on all ranks."""
        if self.equivariance is None:
            return None
        self.require_transformable(min(images.shape[2:]))
        return self.equivariance.draw(self.seed, step, self.downsample_factor)

    def require_transformable(self, side: int) -> None:
        """Raise ConfigError when images of so many pixels may become too small for the loss."""
        if self.equivariance is None:
            return
        smallest = self.equivariance.smallest_side(side, self.downsample_factor)
        needed = self.loss.smallest_side
        if smallest < needed:
            raise ConfigError(
                f"equivariance.scales: the lowest, {self.equivariance.scales[0]:g}, makes images "
                f"of {side} pixels {smallest} pixels small, but discriminator and LPIPS need "
                f"{needed}; take {min(1.0, needed / side):.3g} or more, larger images or a smaller "
                "disc_num_layers"
            )

    def _resized(self, images: Tensor, step: int) -> Tensor:
        """Images at the side that this step draws among low, low + 16, ... high pixels."""
        if self.options["batch_resize_range"] is None:
            return images
        low, high = self.options["batch_resize_range"]
        # published: the first five steps use the largest size, so that memory runs out early
        sizes = range(high, high + 1) if step <= 4 else range(low, high + 1, 16)
        size = random.Random(f"{self.seed}/{step}").choice(sizes)  # the same on every rank
        if size == images.shape[-1]:
            return images
        return F.interpolate(images, size=(size, size), mode="bicubic")

    def _move_players(self, batches: Sequence[MicroBatch], step: int) -> dict[str, Tensor]:
        if self.options["gan_forward"] == "published":
            metrics = generator_gradients(self, batches, step=step)
            metrics |= self._move(GENERATOR, step, metrics["total_loss"])
            torch.clear_autocast_cache()  # it holds casts of the weights that have just moved
            metrics |= discriminator_gradients(self, batches, step=step)
            return metrics | self._move(DISCRIMINATOR, step, metrics["disc_loss"])
        metrics = shared_gradients(self, batches, step=step)
        metrics |= self._move(GENERATOR, step, metrics["total_loss"])
        if "disc_loss" in metrics:
            metrics |= self._move(DISCRIMINATOR, step, metrics["disc_loss"])
        return metrics

    def _move(self, player: int, step: int, loss: Tensor) -> dict[str, Tensor]:
        """One optimizer step of one player on its gradients, which are then dropped.

        Returns their norm before clipping, by name, where it was needed or a log is due.
        """
        optimizers, schedules = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizers, list)
        optimizer = optimizers[player]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.safe_step is not None:
            poison_unless_finite(parameters, loss)
        average_gradients(parameters)
        value, algorithm = self.gradient_clip_val, self.gradient_clip_algorithm
        norm = None if self.safe_step is None else self.safe_step.judge(optimizer.optimizer)
        if norm is None and log_is_due(self.trainer, step) and not (value and algorithm == "norm"):
            norm = gradient_norm(parameters)
        clipped = clip_gradients(parameters, value, algorithm, norm=norm)
        if player == GENERATOR:
            optimizer.step()  # counts as a step of the trainer
        else:
            # past Lightning's counter, but through its precision plugin and its hooks
            self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None, model=self)
        optimizer.zero_grad(set_to_none=True)
        if isinstance(schedules, list):
            schedules[player].step()  # type: ignore[call-arg] # none waits for a metric
        found = clipped if norm is None else norm
        return {} if found is None else {f"grad_norm/{PLAYERS[player]}": found}

    def _log_training(self, metrics: dict[str, Tensor], step: int, batch_size: int) -> None:
        """Log means over ranks, gathered in one message."""
        means = mean_over_ranks(torch.stack([value.float() for value in metrics.values()]))
        logged = dict(zip(metrics, means.unbind(), strict=True))
        self.log_dict({f"train/{k}": v for k, v in logged.items()}, batch_size=batch_size)
        shown = {"aeloss": logged["total_loss"]}
        if "disc_loss" in logged:
            shown["discloss"] = logged["disc_loss"]
        self.log_dict(shown, prog_bar=True, logger=False, batch_size=batch_size)
        if self.accumulate_grad_batches > 1:
            # Lightning also logs after batches that are held, and would date the old values anew
            self.log("step", float(step), batch_size=batch_size)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a resumed run needs beside weights and optimizers; every rank calls this.

        No buffers, as their names would be in the state dict, whose names are published.
        """
        checkpoint["first_stage"] = {"num_unbalanced": self.loss.num_unbalanced.cpu()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what a checkpoint has of it; others, such as the release's, have none."""
        kept = checkpoint.get("first_stage", {})
        if "num_unbalanced" in kept and isinstance(self.loss, FirstStageLoss):
            self.loss.num_unbalanced.copy_(kept["num_unbalanced"])

    # validation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Compare reconstructions of the most likely latents with their images.

        Logged as `val/...`, and as `val_ema/...` those of the averaged weights, if there are any.
        """
        self._evaluate_both(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As in validation, logged as `test/...` and `test_ema/...`."""
        self._evaluate_both(batch, "test")

    def _evaluate_both(self, batch: Batch, split: str) -> None:
        self._evaluate(batch, split)
        if self.model_ema is not None:
            with self.model_ema.applied_to(self.networks()):
                self._evaluate(batch, f"{split}_ema")

    def _evaluate(self, batch: Batch, split: str) -> None:
        images = self.get_input(batch)
        made = self.autoencode(images, None)
        measured = self._measures(images, made, split).items()
        logged: dict[str, Any] = {f"{split}/{name}": v.float().mean() for name, v in measured}
        self.sharpness[split].update(images, made.reconstruction)
        logged[f"{split}/sharpness"] = self.sharpness[split]  # Lightning computes and resets it
        self.log_dict(
            logged,
            batch_size=len(images),
            on_step=False,
            on_epoch=True,
            sync_dist=True,
        )

    def _measures(self, images: Tensor, made: Autoencoded, split: str) -> dict[str, Tensor]:
        """What validation logs of a batch of a split, by name."""
        return measures(self.loss, images, made=made, step=self.trainer.global_step)
