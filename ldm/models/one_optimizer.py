"""How a model of one network is trained: its optimizer, its average, its examples' own numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.optim import Optimizer

from ldm.config import build
from ldm.diffusion.draws import KeyedDraws
from ldm.models.diffusion.validation import LossByTime
from ldm.models.ema import EMA
from ldm.models.logging import log_is_due
from ldm.models.optim import build_optimizer, build_schedule, clip_gradients, gradient_norm
from ldm.safe_step import SafeStep
from ldm.tensor import to_image_tensor

__all__ = ["ADAMW", "VALIDATION_SEED", "OneOptimizer"]

Batch = Mapping[str, Any]

ADAMW = {"target": "torch.optim.AdamW", "params": {}}
VALIDATION_SEED = -1  # noise and times of validation are those of no training step


class OneOptimizer(pl.LightningModule):
    """A module with one optimizer, whose examples have random numbers of their own.

    model: the network that is trained.  model_ema: its average, or None.
    first_stage_key: batch entry that holds the image.
    val_losses: what validation has measured so far, whose means are logged.

    Set by the command line: `learning_rate` (per optimizer step, not scaled further) and `seed`
    (of times and noise; an example's depend on seed, step and its `sample_id` alone).
    """

    learning_rate: float = 1e-4
    seed: int = 23
    safe_step: SafeStep | None = None  # set by the guard of a training
    model: nn.Module
    model_ema: EMA | None
    first_stage_key: str
    val_losses: LossByTime
    optimizer_config: Mapping[str, Any]
    scheduler_config: Mapping[str, Any] | None

    def get_input(self, batch: Batch, key: str | None = None) -> Tensor:
        """Images of a batch: (B, C, H, W) in [-1, 1]."""
        return to_image_tensor(batch[key or self.first_stage_key])

    def draws(
        self, batch: Batch, batch_idx: int = 0, *, seed: int | None = None, step: int = 0
    ) -> KeyedDraws:
        """Random numbers of a batch, by the identity of each example (`sample_id`).

        batch_idx: tells examples without one apart.
        """
        keys = batch.get("sample_id")
        if keys is None:  # then reproducible only for this division into ranks and batches
            size = len(batch[self.first_stage_key])
            keys = [f"{self.global_rank}/{batch_idx}/{index}" for index in range(size)]
        return KeyedDraws(keys, self.seed if seed is None else seed, step, self.device)

    def learned_parameters(self) -> list[nn.Parameter]:
        """Everything the optimizer moves."""
        return list(self.model.parameters())

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the norm of the gradient, before clipping, when a log is due."""
        if log_is_due(self.trainer, self.global_step):
            norm = None if self.safe_step is None else self.safe_step.norm
            self.log("train/grad_norm", gradient_norm(self.parameters()) if norm is None else norm)

    def configure_gradient_clipping(self, optimizer: Optimizer, **limits: Any) -> None:  # type: ignore[override]
        """Clip here what is not scaled: Lightning does not clip for a fused optimizer."""
        if self.trainer.precision == "16-mixed":
            super().configure_gradient_clipping(optimizer, **limits)
            return
        value, algorithm = limits["gradient_clip_val"], limits["gradient_clip_algorithm"]
        norm = None if self.safe_step is None else self.safe_step.norm
        clip_gradients(self.learned_parameters(), value, algorithm or "norm", norm=norm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One optimizer step, then one update of the average."""
        super().optimizer_step(*args, **kwargs)
        if self.model_ema is not None:
            held = self.safe_step is not None and self.safe_step.held_by(0)
            self.model_ema.update(self.model, held)

    def on_validation_epoch_end(self) -> None:
        """Log the means over the validation set, of all ranks."""
        self._log_means("val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As in validation, logged as `test/...`."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log the means over the test set, of all ranks."""
        self._log_means("test")

    def _log_means(self, split: str) -> None:
        for name, mean in self.val_losses.compute().items():
            self.log(f"{split}/{name}", mean)

    def configure_optimizers(self) -> Any:
        """AdamW unless configured otherwise, with the learning-rate schedule, if any."""
        # a fused optimizer takes the scale out of fp16's gradients by itself, too late for clipping
        # and for their norm in the log
        is_scaled = getattr(self._trainer, "precision", None) == "16-mixed"
        optimizer = build_optimizer(
            self.learned_parameters(),
            self.learning_rate,
            self.optimizer_config,
            fused=not is_scaled,
        )
        if self.scheduler_config is None:
            return optimizer
        factor = build(self.scheduler_config, path="scheduler_config")
        return [optimizer], [build_schedule(optimizer, factor)]
