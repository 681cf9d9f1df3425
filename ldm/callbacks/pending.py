"""A validation that was not finished is made anew, wholly, before a resumed run goes on."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

__all__ = ["PendingValidation", "common_batches", "validation_follows"]

_MANY = 2**62


class PendingValidation(pl.Callback):
    """Notes in checkpoints that a validation is due, or is under way.

    Lightning by itself leaves out a validation that was due when a checkpoint was saved at the end
    of the batch before it, and takes up one that was saved within with the wrong samples. Here both
    count as saved before the first batch of validation, where Lightning begins it anew: the metrics
    and the best checkpoints of a resumed run are those of an unbroken one.

    Belongs before the callbacks that save checkpoints.
    """

    def __init__(self) -> None:
        self._is_under_way = False

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on one is under way, outside the sanity check."""
        self._is_under_way = not trainer.sanity_checking

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """It is done: what is saved from here on has it, and is named by the step of training."""
        self._is_under_way = False
        # a first stage logs the step of a row, which is one less, and a resumed run has not yet
        trainer.callback_metrics.pop("step", None)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set Lightning's counts to those of the moment before validation."""
        counts = checkpoint["loops"]["fit_loop"]
        validation = counts["epoch_loop.val_loop.batch_progress"]
        if not (self._is_under_way or validation_follows(trainer)):
            # one that was begun anew has left the count of what was begun one too high
            for batches in _both(validation):
                batches |= dict.fromkeys(batches, batches["completed"])
            return
        for batches in _both(counts["epoch_loop.batch_progress"]):
            batches["completed"] = batches["processed"]
        for batches in _both(validation):
            batches |= dict.fromkeys(batches, 0)
        # one batch begun, none of it done, is how Lightning knows that it is to validate
        validation["total"] |= {"ready": 1, "started": 1}
        validation["is_last_batch"] = False


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether the batch that has just been trained on is the last one before a validation."""
    if not trainer.training:
        return False
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    if progress.processed == progress.completed:  # between batches, or at the end of an epoch
        return False
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def common_batches(trainer: pl.Trainer) -> int:
    """Batches of a validation that every process has; the last ones may be without another.

    Every process calls this, and waits for the others.
    """
    count = min(trainer.num_val_batches[0], _MANY)  # infinity where a set has no length
    own = torch.tensor(int(count), device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(own, reduce_op="min"))


def _both(progress: dict[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    return progress["current"], progress["total"]
