"""Images per second and peak memory, in the log."""

from __future__ import annotations

import resource
import time
from typing import Any

import pytorch_lightning as pl
import torch

__all__ = ["Throughput", "batch_size"]


def batch_size(batch: Any) -> int:
    """Number of examples of a batch: the length of its first entry."""
    first = next(iter(batch.values())) if isinstance(batch, dict) else batch
    return len(first)


class Throughput(pl.Callback):
    """Logs `images_per_second` (over all devices) and `peak_memory_gib` every n optimizer steps.

    Validation, and what else lies between two epochs, does not count.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; expected 1 or more")
        self.every_n_steps = every_n_steps
        self._since = 0.0
        self._images = 0
        self._logged_at = 0
        self._paused_at = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing is due before the next step."""
        self._logged_at = trainer.global_step

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._since, self._images = time.perf_counter(), 0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._paused_at = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the clock go on."""
        self._since += time.perf_counter() - self._paused_at

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count, and log now and then."""
        self._images += batch_size(batch) * trainer.world_size
        step = trainer.global_step
        if step % self.every_n_steps or step == self._logged_at:
            return
        now = time.perf_counter()
        measured = {
            "images_per_second": self._images / max(now - self._since, 1e-9),
            "peak_memory_gib": _peak_memory(pl_module.device),
        }
        for logger in trainer.loggers:
            logger.log_metrics(measured, step=step)
        self._since, self._images, self._logged_at = now, 0, step


def _peak_memory(device: torch.device) -> float:
    """GiB: allocated on a GPU, of the whole process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
