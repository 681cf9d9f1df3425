"""What signals and the clock ask of a training, and what all of its processes agree to answer."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from types import FrameType

import pytorch_lightning as pl
import torch

from ldm.callbacks import slurm
from ldm.callbacks.clock import moment
from ldm.callbacks.stopping import SIGNALS, TIME, Stopped, is_end, name_of, signals_restored
from ldm.log import log
from ldm.ranks import sum_over_ranks

__all__ = ["SIGNALS", "TIME", "Signals", "Stopped", "signals_restored"]


class Signals:
    """Remembers what was asked, until all processes have agreed to answer.

    agree_every: with several processes on devices, steps between two agreements; an agreement
        makes the processes wait for each other and for their devices. On CPUs they agree after
        each step.
    deadline: when the time is over, on the clock of `time.monotonic`; None never.
    """

    def __init__(self, agree_every: int, deadline: float | None = None) -> None:
        self.agree_every = agree_every
        self.deadline = deadline
        self._asked: dict[int, bool] = dict.fromkeys(SIGNALS, False)
        self._listener = os.getpid()
        self._is_ending = False

    def listen(self) -> None:
        """Take the signals of this process from whoever had them."""
        self._listener = os.getpid()
        for number in SIGNALS:
            signal.signal(number, self._remember)

    def take_over(self, trainer: pl.Trainer) -> None:
        """Listen, in place of Lightning, before the processes that read data are started.

        Lightning would ask all processes about SIGTERM in every step and wait for the answer on
        the host, which stalls the device; in a job of SLURM it would answer SIGUSR1 with a
        checkpoint and a requeueing of its own.
        """
        self._is_ending = False
        self.listen()
        if self.deadline is not None:
            log.info("saves and stops at %s", moment(self.deadline))
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]
        trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]

    def asked(self, trainer: pl.Trainer, count: int) -> Iterator[int]:
        """What is to be answered now, signals by number or TIME; all processes call this.

        count: of steps; with several processes on devices, they agree on some counts only.
        """
        has_queue = trainer.strategy.root_device.type != "cpu"  # which an agreement would drain
        if trainer.world_size > 1 and has_queue and count % self.agree_every:
            return
        yield from self._agreed(trainer)

    def answer(self, number: int, trainer: pl.Trainer, path: Path) -> None:
        """Say that what was asked for is saved; all processes call this.

        path: of the checkpoint.
        Raises Stopped where training ends; before that, SIGUSR1 has a job of SLURM requeued.
        """
        if not is_end(number):
            log.info("%s: saved %s at step %d", name_of(number), path, trainer.global_step)
            return
        self._is_ending = True  # whatever comes now, such as the end of a job that is requeued
        stopped = Stopped(number, _unwatched(trainer))
        log.info(
            "%s: saved %s and stopped at step %d, exit code %s",
            name_of(number),
            path,
            trainer.global_step,
            stopped.code,
        )
        if number == signal.SIGUSR1 and trainer.is_global_zero:
            slurm.requeue()
        trainer.strategy.barrier()  # launchers end the others as soon as one has ended
        raise stopped

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._listener:
            return  # a loader's process, which has inherited this: its training process ends it
        if self._is_ending and number != signal.SIGINT:
            return
        self._asked[number] = True
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
            log.info("stopping after the step; Ctrl-C again stops at once")

    def _agreed(self, trainer: pl.Trainer) -> list[int]:
        """What any of the processes was asked since the last time."""
        asked, self._asked = self._asked, dict.fromkeys(SIGNALS, False)
        is_over = self.deadline is not None and time.monotonic() >= self.deadline
        flags = [int(asked[number]) for number in SIGNALS] + [int(is_over)]
        if trainer.world_size > 1:
            device = trainer.strategy.root_device
            flags = sum_over_ranks(torch.tensor(flags, dtype=torch.int32, device=device)).tolist()
        return [number for number, flag in zip((*SIGNALS, TIME), flags, strict=True) if flag]


def _unwatched(trainer: pl.Trainer) -> list[Popen[bytes]]:
    """The processes that Lightning started, which it watches no longer.

    It would kill this process seconds after the first of them has ended with another code than 0.
    """
    watched: list[Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    processes = list(watched)
    watched.clear()  # it is the watching thread's own list
    return processes


def _nothing() -> None: ...
