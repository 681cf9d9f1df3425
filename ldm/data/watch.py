"""What the processes that read data are doing, seen from the process that waits for them."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from typing import Any

from torch.utils.data import get_worker_info

__all__ = ["Busy", "Watch"]

_PID, _INDEX, _SINCE, _CHANGED, _WIDTH = 0, 1, 2, 3, 4


@dataclass(frozen=True)
class Busy:
    """A process that reads a sample: its number and id, the sample's index, since how long."""

    worker: int
    pid: int
    index: int
    seconds: float


class Watch:
    """A few numbers for each loader process, in memory that all of them share.

    A process says which sample it begins and that it is done with it. It writes to its own numbers
    alone, and nobody waits for anybody.

    workers: number of processes.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._numbers: Any = multiprocessing.RawArray("d", _WIDTH * workers)

    def begin(self, index: int) -> None:
        """This process is about to read a sample; the process that trains says nothing."""
        worker = get_worker_info()
        if worker is None:
            return
        row = _WIDTH * worker.id
        now = time.monotonic()  # the same clock in all processes of a machine
        self._numbers[row + _PID] = multiprocessing.current_process().pid
        self._numbers[row + _INDEX] = index
        self._numbers[row + _CHANGED] = now
        self._numbers[row + _SINCE] = now

    def end(self) -> None:
        """It has been read, or cannot be."""
        worker = get_worker_info()
        if worker is not None:
            row = _WIDTH * worker.id
            self._numbers[row + _SINCE] = 0
            self._numbers[row + _CHANGED] = time.monotonic()

    def forget(self) -> None:
        """Other processes begin."""
        for place in range(len(self._numbers)):
            self._numbers[place] = 0

    def busy(self) -> list[Busy]:
        """The processes that read a sample now, or ended while they did; the longest first."""
        now = time.monotonic()
        found = []
        for worker in range(self.workers):
            start = _WIDTH * worker
            pid, index, since, _ = self._numbers[start : start + _WIDTH]
            if since:
                found.append(Busy(worker, int(pid), int(index), now - since))
        return sorted(found, key=lambda each: -each.seconds)

    def last_change(self) -> float:
        """When any of them last began or ended a sample, by `time.monotonic`; 0 for never."""
        return max(self._numbers[_CHANGED::_WIDTH], default=0.0)
