"""What the system asks of a training by signals, and what all of its processes agree to answer."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytorch_lightning as pl

from ldm.log import log

__all__ = ["ENDING", "SIGNALS", "Signals", "Stopped", "signals_restored"]

ENDING = (signal.SIGTERM, signal.SIGINT)  # save and stop
SIGNALS = (*ENDING, signal.SIGUSR1)  # the last one: save and go on


class Stopped(SystemExit):
    """Training was asked to stop by a signal; a checkpoint was written first.

    The process ends with the code of one that the signal killed: 143 after SIGTERM, 130 after
    Ctrl-C.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


@contextmanager
def signals_restored() -> Iterator[None]:
    """Give the signals back to those who handled them before, however training ended."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Signals:
    """Remembers the signals that came, until all processes have agreed to answer them.

    agree_every: with several processes on devices, steps between two agreements; an agreement
        makes the processes wait for each other and for their devices. On CPUs they agree after
        each step.
    """

    def __init__(self, agree_every: int) -> None:
        self.agree_every = agree_every
        self._asked: dict[int, bool] = dict.fromkeys(SIGNALS, False)
        self._listener = os.getpid()

    def listen(self) -> None:
        """Take the signals of this process from whoever had them."""
        self._listener = os.getpid()
        for number in SIGNALS:
            signal.signal(number, self._remember)

    def asked(self, trainer: pl.Trainer, count: int) -> Iterator[int]:
        """The signals to be answered now, those that end training first; all processes call this.

        count: of steps; with several processes on devices, they agree on some counts only.
        """
        has_queue = trainer.strategy.root_device.type != "cpu"  # which an agreement would drain
        if trainer.world_size > 1 and has_queue and count % self.agree_every:
            return
        for number in SIGNALS:
            if self._agreed(trainer, number):
                yield number

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._listener:
            return  # a loader's process, which has inherited this: its training process ends it
        self._asked[number] = True
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
            log.info("stopping after the step; Ctrl-C again stops at once")

    def _agreed(self, trainer: pl.Trainer, number: int) -> bool:
        asked = self._asked[number]
        self._asked[number] = False
        if trainer.world_size == 1:
            return asked
        return bool(trainer.strategy.reduce_boolean_decision(asked, all=False))
