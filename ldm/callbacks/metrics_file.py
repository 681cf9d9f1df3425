"""`metrics.csv` of a start: what a checkpoint's steps logged is in it before the checkpoint is."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.loggers.logger import rank_zero_experiment
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from ldm.io.atomic import write_atomically

__all__ = ["LoggedBeforeSaved", "MetricsFile"]


class _Rows(ExperimentWriter):
    """Rows of the file; a new column makes a new file, which is whole or not there."""

    def _rewrite_with_new_header(self, fieldnames: Sequence[str]) -> None:
        path = Path(self.metrics_file_path)
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames)
        writer.writeheader()
        writer.writerows(rows)
        content = text.getvalue().encode()
        write_atomically(path, lambda sink: sink.write(content), is_announced=False)


class MetricsFile(CSVLogger):
    """Lightning's CSV logger, for which a process may die at any moment.

    A row that is logged again, word for word and at once, is not written again.
    """

    _last: tuple[int | None, dict[str, Any]] | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """What writes the rows."""
        if self._experiment is None:
            Path(self.root_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _Rows(log_dir=self.log_dir)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row, unless it is the last one."""
        row = (step, dict(metrics))
        if row != self._last:
            super().log_metrics(dict(metrics), step)
        self._last = row


class LoggedBeforeSaved(pl.Callback):
    """Has what a step logged on the disk before a checkpoint of that step.

    Lightning logs a step when everything else at its end is done, saving too. So a run that is
    killed in between would go on behind the step and never log it.
    """

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Log the step to the file now, and bring to the disk what TensorBoard's has."""
        loggers = trainer.loggers
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        if trainer.training and progress.processed != progress.completed:
            trainer.loggers = [each for each in loggers if isinstance(each, MetricsFile)]
            try:
                trainer._logger_connector.update_train_step_metrics()
            finally:
                trainer.loggers = loggers
        if trainer.is_global_zero:
            for logger in loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.flush()
