"""The metric that decides which checkpoints are best: it must be there."""

from __future__ import annotations

import pytorch_lightning as pl

from ldm.config import ConfigError, did_you_mean

__all__ = ["MonitorCheck"]


class MonitorCheck(pl.Callback):
    """Stops at the first validation that does not report the metric that decides on the best.

    That is the one before training, unless `num_sanity_val_steps` is 0.

    metric: name of the metric, e.g. `val/rec_loss`.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise ConfigError, with the nearest metric there is."""
        self._check(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same, when there was no check before."""
        if not trainer.sanity_checking:
            self._check(trainer)

    def _check(self, trainer: pl.Trainer) -> None:
        found = list(trainer.callback_metrics)
        if found and self.metric not in found:
            hint = did_you_mean(self.metric, found) or f"; it reports {', '.join(found)}"
            raise ConfigError(f"model.params.monitor: validation reports no {self.metric!r}{hint}")
