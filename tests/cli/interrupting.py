"""Callbacks that interrupt training at a known batch; a configuration can name them."""

import os
import signal
import time
from typing import Any

import pytorch_lightning as pl


class SignalAt(pl.Callback):
    """Sends this process a signal while a batch is being worked on.

    number: of the signal.  batch: counted from 1.  validation: count batches of validation.
    rank: of the only process that is sent it; None for all.
    """

    def __init__(
        self, number: int, batch: int, validation: bool = False, rank: int | None = None
    ) -> None:
        self.number, self.batch, self.validation, self.rank = number, batch, validation, rank
        self.seen = 0

    def _count(self, trainer: pl.Trainer) -> None:
        self.seen += 1
        if self.seen == self.batch and self.rank in (None, trainer.global_rank):
            os.kill(os.getpid(), signal.Signals(self.number))

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if not self.validation:
            self._count(trainer)

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.validation:
            self._count(trainer)


class RaiseAt(pl.Callback):
    """Raises at the end of a batch, counted from 1."""

    def __init__(self, batch: int) -> None:
        self.batch, self.seen = batch, 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.seen += 1
        if self.seen == self.batch:
            raise RuntimeError("the callback's own error")


class WaitAt(pl.Callback):
    """Waits at a batch, counted from 1, until a time of `time.monotonic`."""

    def __init__(self, batch: int, until: float) -> None:
        self.batch, self.until, self.seen = batch, until, 0

    def on_train_batch_start(self, *_: Any) -> None:
        self.seen += 1
        if self.seen == self.batch:
            time.sleep(max(0.0, self.until - time.monotonic()))


class SignalWhenBuilt(pl.Callback):
    """Sends this process a signal when the trainer is built, before anything is trained."""

    def __init__(self, number: int) -> None:
        os.kill(os.getpid(), number)
