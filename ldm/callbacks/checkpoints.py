"""Checkpoints to go on from: `last.ckpt` at every chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from torch import nn

from ldm.callbacks.checkpoint_io import AtomicCheckpointIO
from ldm.callbacks.divergence import Diverged, non_finite
from ldm.callbacks.pending import common_batches, validation_follows
from ldm.callbacks.progress import accumulation
from ldm.callbacks.signals import Signals, Stopped
from ldm.callbacks.stopping import is_end
from ldm.io import store
from ldm.io.first_stage import FirstStageFile
from ldm.log import log
from ldm.ranks import alone

__all__ = ["EXIT_UNSAVED", "LastCheckpoint", "NotSaved"]


EXIT_UNSAVED = 74  # EX_IOERR of sysexits.h


class NotSaved(SystemExit):
    """Training ended, but its last checkpoint could not be written; the exit code is 74."""

    def __init__(self) -> None:
        super().__init__(EXIT_UNSAVED)


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`: what `--resume` goes on from.

    Written every `every_n_steps` optimizer steps, after each validation, at the end, and when an
    exception ends training (which then shows its own traceback). A signal is answered at the end
    of the optimizer step during which it came: SIGTERM, Ctrl-C and the deadline save and stop;
    SIGUSR1 saves and goes on, or saves and has a job of SLURM requeued. A second Ctrl-C interrupts
    at once.

    A checkpoint is of a whole optimizer step: batches of one that was not complete are taken again.

    A write that fails does not end training (`AtomicCheckpointIO`). One that fails at the end, a
    second time, does: the process ends with code 74.

    directory: where the file goes.
    every_n_steps: optimizer steps between two writes.
    agree_every: with several processes on devices, steps between two agreements on a signal.
    deadline: when to save and stop, on the clock of `time.monotonic`; None never.
    embed_first_stage: keep the frozen first stage in each checkpoint, not in a file beside them.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        every_n_steps: int = 1000,
        agree_every: int = 20,
        deadline: float | None = None,
        embed_first_stage: bool = False,
    ) -> None:
        self.path = Path(directory) / "last.ckpt"
        self.every_n_steps = every_n_steps
        self.embed_first_stage = embed_first_stage
        self._signals = Signals(agree_every, deadline)
        self._saved_at = -1
        self._is_training = self._has_begun = False
        self._common_batches = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen to the signals, before the processes that read data are started."""
        if (io := _io(trainer)) and not self.embed_first_stage and _has_frozen(pl_module):
            io.first_stage = FirstStageFile(self.path.parent)
        self._signals.take_over(trainer)
        self._has_begun = False
        if trainer.ckpt_path is not None and trainer.is_global_zero:
            self._tidy(trainer, Path(trainer.ckpt_path))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on there is something to lose."""
        self._is_training = self._has_begun = True
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
        if io := _io(trainer):
            io.check()
        if (batch_idx + 1) % accumulation(trainer) and not trainer.is_last_batch:
            return
        step = trainer.global_step
        # the end is saved here, where a longer run would pass by, and not after it; but before its
        # validation it is none yet, as a run that has reached it is not gone on from
        is_end = trainer.should_stop or step == trainer.max_steps
        if is_end and validation_follows(trainer):
            return
        if is_end or step // self.every_n_steps != self._saved_at // self.every_n_steps:
            self._save(trainer)
        self._answer_signals(trainer, step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Learn how many batches all processes have: only in these can they agree."""
        if self._is_training:
            self._common_batches = common_batches(trainer)

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
        if self._is_training and batch_idx < self._common_batches:
            self._answer_signals(trainer, batch_idx + 1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, outside the sanity check."""
        if self._is_training and not trainer.sanity_checking:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end, unless it has been; once more, if that failed.

        Raises NotSaved, in all processes, when it fails again.
        """
        if self._saved_at != trainer.global_step or self._has_failed(trainer):
            self._save(trainer)
        self._is_training = False
        if self._has_failed(trainer):
            self._give_up(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Where nothing was left to train, what was gone on from is the last checkpoint.

        It may be one of the best, after which the process was killed.
        """
        path, io = trainer.ckpt_path, _io(trainer)
        if self._has_begun or path is None or io is None or not trainer.is_global_zero:
            return
        if Path(path).absolute().parent == self.path.absolute().parent:
            try:
                store.adopt(Path(path), keep=io.keep)
            except OSError as error:
                log.error("%s could not become %s: %s", path, self.path, error)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save what there is; a failure to do so must not hide the exception."""
        try:
            if self._is_training and not isinstance(exception, Stopped | Diverged | NotSaved):
                self._is_training = False
                self._save_alone(trainer)
            if io := _io(trainer):
                io.wait()
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

    def _tidy(self, trainer: pl.Trainer, resumed: Path) -> None:
        """Remove the best checkpoints that one better had replaced, where a kill left them."""
        best = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
        # without what they knew when the checkpoint was written, nothing is known to be surplus
        is_known = bool(best) and all(each.best_k_models for each in best)
        if not is_known or resumed.absolute().parent != self.path.absolute().parent:
            return
        kept = {Path(name).name for each in best for name in each.best_k_models}
        try:
            store.remove_surplus(resumed, kept)
        except OSError as error:
            log.warning("checkpoints that others replaced could not be removed: %s", error)

    def _answer_signals(self, trainer: pl.Trainer, count: int) -> None:
        """Do what was asked for; with several processes on devices, on some counts only."""
        for number in self._signals.asked(trainer, count):
            self._save(trainer)
            if not self._has_failed(trainer):
                self._signals.answer(number, trainer, self.path)
            elif is_end(number):
                self._give_up(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        if io := _io(trainer):
            io.next_attempt = f"step {(step // self.every_n_steps + 1) * self.every_n_steps}"
        # Lightning's word for what is written: optimizers and loops too; reading is another matter
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved_at = step

    def _has_failed(self, trainer: pl.Trainer) -> bool:
        """Whether the latest save failed; waits for it, and all processes hear of it."""
        failed = False
        if io := _io(trainer):
            io.wait()
            failed = io.failure is not None
        return bool(trainer.strategy.broadcast(failed))

    def _give_up(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            log.error(
                "error: the state of step %d is lost, it could not be written; go on from what "
                "was written before with -r %s",
                trainer.global_step,
                self.path.parent.parent,
            )
        raise NotSaved

    def _save_alone(self, trainer: pl.Trainer) -> None:
        """Save without the other processes, which may never come."""
        if count := int(non_finite(trainer.lightning_module)):
            log.warning("%d tensors are not finite, so %s stays as it was", count, self.path)
        elif trainer.is_global_zero:
            with alone():
                checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.checkpoint_io.save_checkpoint(checkpoint, self.path)
            io = _io(trainer)
            if io is not None:
                io.wait()
            if io is None or io.failure is None:
                log.warning("saved %s at step %d", self.path, trainer.global_step)


def _io(trainer: pl.Trainer) -> AtomicCheckpointIO | None:
    """What writes the checkpoints, unless someone has put another thing there."""
    io = trainer.strategy.checkpoint_io
    return io if isinstance(io, AtomicCheckpointIO) else None


def _has_frozen(model: pl.LightningModule) -> bool:
    """Whether a model has a first stage that does not learn."""
    stage = getattr(model, "first_stage_model", None)
    return isinstance(stage, nn.Module) and not any(p.requires_grad for p in stage.parameters())
