"""One bar for the whole training: batches, images per second, time left, and the loss."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm

from ldm.callbacks.throughput import batch_size
from ldm.log import log

__all__ = ["TrainingProgress"]


class TrainingProgress(ProgressBar):
    """A bar over all batches of all epochs; a line every half minute where there is no terminal.

    Losses are read from the device only when they are shown, every `refresh_seconds`.
    """

    def __init__(self, refresh_seconds: float | None = None) -> None:
        super().__init__()
        self.is_terminal = sys.stderr.isatty()
        self.refresh_seconds = refresh_seconds or (1.0 if self.is_terminal else 30.0)
        self._bar: tqdm[Any] | None = None
        self._enabled = True
        self._shown_at = 0.0
        self._first_batch = 0
        self._images = 0
        self._started = 0.0

    def disable(self) -> None:
        """Show nothing (Lightning calls this on all ranks but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar where the run stands."""
        self._started = self._shown_at = time.perf_counter()
        self._first_batch = trainer.fit_loop.total_batch_idx + 1
        self._images = 0
        if self._enabled and self.is_terminal:
            self._bar = tqdm(
                total=_total_batches(trainer),
                initial=self._first_batch,
                unit="batch",
                dynamic_ncols=True,
                mininterval=self.refresh_seconds,
            )

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move on; show what there is now and then."""
        self._images += batch_size(batch) * trainer.world_size
        now = time.perf_counter()
        if not self._enabled or now - self._shown_at < self.refresh_seconds:
            return
        self._shown_at = now
        self._show(trainer, pl_module, now)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the end and close."""
        if self._enabled:
            self._show(trainer, pl_module, time.perf_counter())
        self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the terminal to the traceback."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show(self, trainer: pl.Trainer, pl_module: pl.LightningModule, now: float) -> None:
        done = trainer.fit_loop.total_batch_idx + 1
        rate = self._images / max(now - self._started, 1e-9)
        metrics = self.get_metrics(trainer, pl_module)
        shown = " ".join(f"{key}={_short(value)}" for key, value in metrics.items())
        shown = f"{rate:.1f} images/s {shown}"
        if self._bar is not None:
            self._bar.set_postfix_str(shown, refresh=False)
            self._bar.n = done
            self._bar.refresh()
            return
        total = _total_batches(trainer)
        per_batch = (now - self._started) / max(done - self._first_batch, 1)
        left = f", {_duration((total - done) * per_batch)} left" if total else ""
        log.info("batch %d%s%s, %s", done, f"/{total}" if total else "", left, shown)

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Lightning's progress metrics, less the version number."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


def _total_batches(trainer: pl.Trainer) -> int | None:
    """Batches until the run ends by steps or epochs, whichever is first; None when unbounded."""
    ends = []
    if trainer.max_steps not in (None, -1):
        ends.append(trainer.max_steps * accumulation(trainer))
    if trainer.max_epochs not in (None, -1) and trainer.num_training_batches != float("inf"):
        ends.append(int(trainer.num_training_batches) * (trainer.max_epochs or 0))
    return min(ends) if ends else None


def accumulation(trainer: pl.Trainer) -> int:
    """Batches per optimizer step, whether Lightning or the module accumulates them."""
    own = getattr(trainer.lightning_module, "accumulate_grad_batches", 1)
    return max(int(own or 1), trainer.accumulate_grad_batches)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
