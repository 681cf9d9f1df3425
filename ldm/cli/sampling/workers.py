"""Several processes that share the images of a job: one for each GPU, or some on the CPU."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from ldm.cli.sampling.task import Task
from ldm.config import ConfigError

__all__ = ["Workers"]

T = TypeVar("T")

POLL_S = 0.2

_ENTRY = (
    "import sys; from functools import partial; from ldm.cli.exits import exit_code; "
    "from ldm.cli.sampling.draw import draw_task; from {module} import {task}; "
    "sys.exit(exit_code(partial(draw_task, {task}())))"
)


@dataclass
class Workers:
    """This process, number `index` of `count`, and the others if it is the first.

    command: starts another one, but for its number.  devices: of each.
    parent: the first process; others end when it is gone.
    """

    index: int
    count: int
    command: list[str]
    devices: list[str]
    parent: int
    others: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @staticmethod
    def of(args: argparse.Namespace, task: Task, argv: Sequence[str]) -> Workers:
        """The processes that flags ask for; sets `args.device` of this one.

        Raises ConfigError for flags that clash.
        """
        devices = [args.device] * args.processes
        if args.gpus is not None:
            if args.processes > 1:
                raise ConfigError("--gpus and --processes: --gpus starts a process for each GPU")
            numbers = [number.strip() for number in args.gpus.split(",") if number.strip()]
            if not numbers or not all(number.isdigit() for number in numbers):
                raise ConfigError(f"--gpus {args.gpus}: expected numbers of GPUs, such as 0,1")
            devices = [f"cuda:{number}" for number in numbers]
        # of this very process: one that starts late may have no parent any more
        index, parent = map(int, args.worker.split("/")) if args.worker else (0, os.getpid())
        args.device = devices[index]
        entry = _ENTRY.format(module=type(task).__module__, task=type(task).__name__)
        return Workers(index, len(devices), [sys.executable, "-c", entry, *argv], devices, parent)

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Share the cores of the CPU between the processes."""
        before = torch.get_num_threads()
        if self.count > 1:
            torch.set_num_threads(max(1, before // self.count))
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def share(self, batches: Sequence[T]) -> Sequence[T]:
        """Those of all batches that this process draws."""
        return batches[self.index :: self.count]

    @contextmanager
    def started(self, out: Path) -> Iterator[None]:
        """Start the other processes, of which none outlives this."""
        if self.index == 0:
            for number in range(1, self.count):
                told = ["--out", str(out), "--worker", f"{number}/{self.parent}"]
                self.others.append(subprocess.Popen([*self.command, *told]))
        try:
            yield
        finally:
            for process in self.others:
                process.terminate()
                process.wait()

    def others_draw(self) -> bool:
        """Wait a moment; whether others are still at work. ConfigError when one has failed."""
        for number, process in enumerate(self.others, start=1):
            if process.poll() not in (None, 0):
                raise ConfigError(
                    f"process {number} of {self.count} ended with {process.returncode}: see above; "
                    "the same command goes on from here"
                )
        time.sleep(POLL_S)
        return any(process.poll() is None for process in self.others)

    def require_parent(self) -> None:
        """End a process whose first one is gone."""
        if self.index > 0 and os.getppid() != self.parent:
            raise SystemExit(1)
