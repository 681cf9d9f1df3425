"""How a training that was asked to stop ends: its exit codes, and signals outside of training.

Nothing heavy is imported here, so that signals are answered from the first second on.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from subprocess import Popen, TimeoutExpired
from types import FrameType

from ldm.callbacks import slurm
from ldm.log import log, rank

__all__ = [
    "EXIT_INTERRUPTED",
    "EXIT_RESUME",
    "SIGNALS",
    "TIME",
    "Stopped",
    "answer_at_once",
    "is_end",
    "name_of",
    "signals_restored",
]

EXIT_INTERRUPTED = 130  # 128 + SIGINT: by hand, so nobody is asked to start it again
EXIT_RESUME = 75  # EX_TEMPFAIL of sysexits.h: what there was is saved, start it again to go on

TIME = 0  # the number of no signal: the time is over
# Ctrl-C before those that mean "start again", and the one that asks SLURM for it before the others
SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)

_PATIENCE = 60  # seconds for other processes to end by themselves


def name_of(number: int) -> str:
    """What asked: the name of a signal, or the time limit."""
    return "time limit" if number == TIME else signal.Signals(number).name


def is_end(number: int) -> bool:
    """Whether training ends when this was asked; after SIGUSR1 only a job of SLURM does."""
    return number != signal.SIGUSR1 or slurm.is_batch_job()


class Stopped(SystemExit):
    """The process was asked to stop, by a signal or the time limit; what there was is saved.

    It ends with EXIT_RESUME, which tells a scheduler to start it again; after Ctrl-C with
    EXIT_INTERRUPTED.

    number: of the signal, or TIME.
    others: processes that this one started, and that end for the same reason.
    """

    def __init__(self, number: int, others: Sequence[Popen[bytes]] = ()) -> None:
        super().__init__(EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_RESUME)
        self.number = number
        self.others = others

    def wait_for_others(self) -> None:
        """Wait until the others have ended, so that nothing holds a device any more."""
        for process in self.others:
            try:
                process.wait(_PATIENCE)
            except TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def signals_restored() -> Iterator[None]:
    """Give the signals back to those who handled them before, however what is inside ended."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def answer_at_once() -> None:
    """From here on nothing is at stake: a signal that ends training ends the process at once.

    Before training and after it; Ctrl-C is a KeyboardInterrupt.
    """
    listener = os.getpid()

    def stop(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != listener:  # a process that has inherited this
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not is_end(number):
            log.info("%s: nothing is being trained, so there is nothing to save", name_of(number))
        else:
            log.info("%s: stopped, with nothing to save", name_of(number))
            if number == signal.SIGUSR1 and not rank():
                slurm.requeue()
            raise Stopped(number)

    for number in SIGNALS:
        is_keyboard = number == signal.SIGINT
        signal.signal(number, signal.default_int_handler if is_keyboard else stop)
