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
    """Logs `images_per_second` (over all devices) and `peak_memory_gib` every n optimizer steps."""

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self._since = 0.0
        self._images = 0
        self._logged_at = -1

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; what lies between two epochs does not count."""
        self._since, self._images = time.perf_counter(), 0

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
            "peak_memory_gib": _peak_memory(),
        }
        for logger in trainer.loggers:
            logger.log_metrics(measured, step=step)
        self._since, self._images, self._logged_at = now, 0, step


def _peak_memory() -> float:
    """GiB: of the device where there is one, of the process otherwise."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
