"""Checkpoints that survive: whole files only, and `last.ckpt` at every chance."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from ldm.callbacks.divergence import Diverged, non_finite
from ldm.callbacks.progress import accumulation
from ldm.callbacks.signals import ENDING, Signals, Stopped
from ldm.io import store
from ldm.log import log
from ldm.ranks import alone

__all__ = [
    "AtomicCheckpointIO",
    "LastCheckpoint",
]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it, so that no reader meets half a file.

    Reads tensors and plain values only (`weights_only=True`), whatever is asked.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any = None,
    ) -> None:
        """Write, verify, rename, note it in the manifest; `last.ckpt` names the newest."""
        store.save(checkpoint, Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its entry in the manifest."""
        store.remove(Path(path))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = "cpu",
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Read a checkpoint."""
        return torch.load(path, map_location=map_location, weights_only=True)  # type: ignore[no-any-return]


class LastCheckpoint(pl.Callback):
    """Keeps `last.ckpt`: what `--resume` goes on from.

    Written every `every_n_steps` optimizer steps, after each validation, at the end, and when an
    exception ends training (which then shows its own traceback). A signal is answered at the end
    of the optimizer step during which it came: SIGUSR1 saves and goes on, SIGTERM and Ctrl-C save
    and stop. A second Ctrl-C interrupts at once.

    A checkpoint is of a whole optimizer step: batches of one that was not complete are taken again.

    directory: where the file goes.
    every_n_steps: optimizer steps between two writes.
    agree_every: with several processes on devices, steps between two agreements on a signal.
    """

    def __init__(
        self, directory: str | Path, *, every_n_steps: int = 1000, agree_every: int = 20
    ) -> None:
        self.path = Path(directory) / "last.ckpt"
        self.every_n_steps = every_n_steps
        self._signals = Signals(agree_every)
        self._saved_at = -1
        self._is_training = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen to the signals, before the processes that read data are started."""
        self._signals.listen()
        # Lightning asks all processes about SIGTERM in every step and waits for the answer on
        # the host, which stalls the device; `Signals` does it now and then.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on there is something to lose."""
        # once more: Lightning's own answer to SIGTERM, now in place, waits for all processes
        self._signals.listen()
        self._is_training = True
        self._saved_at = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save when it is time, or when a signal asked for it."""
        if (batch_idx + 1) % accumulation(trainer) and not trainer.is_last_batch:
            return
        step = trainer.global_step
        # the end is saved here, where a longer run would pass by, and not after it
        is_end = trainer.should_stop or step == trainer.max_steps
        if is_end or step // self.every_n_steps != self._saved_at // self.every_n_steps:
            self._save(trainer)
        self._answer_signals(trainer, step)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A signal need not wait for the end of validation."""
        if self._is_training:
            self._answer_signals(trainer, batch_idx + 1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, outside the sanity check."""
        if self._is_training and not trainer.sanity_checking:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end, unless it has been."""
        if self._saved_at != trainer.global_step:
            self._save(trainer)
        self._is_training = False

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save what there is; a failure to do so must not hide the exception."""
        if not self._is_training or isinstance(exception, Stopped | Diverged):
            return
        self._is_training = False
        try:
            self._save_alone(trainer)
        except (OSError, RuntimeError) as error:
            log.error("could not save %s: %s", self.path, error)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set the count of batches back to the last whole optimizer step, as the data module does.

        The gradients of a step that is not complete are in no checkpoint.
        """
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        batches = progress["current"]["processed"]
        incomplete = batches % accumulation(trainer)
        if not incomplete or batches >= trainer.num_training_batches:
            return
        for counts in (progress["current"], progress["total"]):
            whole = counts["processed"] - incomplete
            counts |= dict.fromkeys(("ready", "started", "processed", "completed"), whole)

    def _answer_signals(self, trainer: pl.Trainer, count: int) -> None:
        """Do what was asked for; with several processes on devices, on some counts only."""
        for number in self._signals.asked(trainer, count):
            self._save(trainer)
            name = signal.Signals(number).name
            is_end = number in ENDING
            what = "saved %s and stopped at step %d" if is_end else "saved %s at step %d"
            log.info(f"%s: {what}", name, self.path, trainer.global_step)
            if is_end:
                raise Stopped(number)

    def _save(self, trainer: pl.Trainer) -> None:
        # Lightning's word for what is written: optimizers and loops too; reading is another matter
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved_at = trainer.global_step

    def _save_alone(self, trainer: pl.Trainer) -> None:
        """Save without the other processes, which may never come."""
        if count := int(non_finite(trainer.lightning_module)):
            log.warning("%d tensors are not finite, so %s stays as it was", count, self.path)
        elif trainer.is_global_zero:
            with alone():
                checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.checkpoint_io.save_checkpoint(checkpoint, self.path)
            log.warning("saved %s at step %d", self.path, trainer.global_step)


def _nothing() -> None: ...
