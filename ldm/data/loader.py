"""Batches from a data set: joined, counted, and waited for no longer than is reasonable.

A process that reads data may hang in a read that never returns, or be killed by the system. Either
ends training with one error that says which process it was, and what it was reading.
"""

from __future__ import annotations

import multiprocessing
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from ldm.config import ConfigError
from ldm.data.substitutes import FAULTS, BadSample, name_of
from ldm.data.tally import Tally
from ldm.data.watch import Busy, Watch

__all__ = ["Loader", "collate"]

# keys whose arrays may have another length in every sample, and so stay apart in a batch
RAGGED = frozenset({"boxes", "box_classes", "layout"})

_KILL_SECONDS = 2.0  # until a killed process is gone
_SHARED_MEMORY = "a container has 64 MB of shared memory unless it is started with --shm-size=8g"
_CAUSES = (
    "the usual causes are too little memory (dmesg names what the kernel killed for it; fewer "
    f"data.params.num_workers or a smaller batch_size need less) and, as {_SHARED_MEMORY} or so, "
    "too little of that"
)

_waited_for: Sequence[BaseProcess] = ()  # the processes from which a batch is awaited now


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Samples as one batch, key by key.

    Arrays are stacked, uint8 staying uint8; those of `RAGGED` keys become a list of tensors.
    Numbers become a tensor (B,), except `sample_id`, which stays a list of int; everything else is
    a list. `FAULTS`, which a few samples may have, become the list of theirs.
    Raises ValueError when the samples have different keys, or arrays to stack different shapes.
    """
    names = samples[0].keys() - {FAULTS}
    for sample in samples:
        if sample.keys() - {FAULTS} != names:
            known = sorted(sample.keys() - {FAULTS})
            raise ValueError(f"samples with the keys {sorted(names)} and {known}")
    ordered = [name for name in samples[0] if name in names]
    batch = {name: _joined(name, [sample[name] for sample in samples]) for name in ordered}
    faults = [sample[FAULTS] for sample in samples if FAULTS in sample]
    return {**batch, FAULTS: faults} if faults else batch


def _joined(name: str, values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, np.ndarray | torch.Tensor) and name not in RAGGED:
        _require_one_shape(name, values)
    if isinstance(first, np.ndarray):
        if name in RAGGED:
            return [torch.from_numpy(np.array(value)) for value in values]
        return torch.from_numpy(np.stack(values))
    if isinstance(first, torch.Tensor):
        return values if name in RAGGED else torch.stack(values)
    if isinstance(first, bool | int | float | np.number) and name != "sample_id":
        return torch.tensor(values)
    return values


def _require_one_shape(name: str, values: Sequence[Any]) -> None:
    shapes = sorted({tuple(value.shape) for value in values})
    if len(shapes) > 1:
        found = ", ".join(map(str, shapes[:3])) + (", ..." if len(shapes) > 3 else "")
        raise ValueError(f"{name}: a batch holds shapes {found}; bring them to one size")


class Loader(DataLoader[Any]):
    """A loader of `Keyed` samples, with the methods of one that can be resumed.

    Tells Lightning that it is resumable, without storing anything: `DataModuleFromConfig` keeps the
    position.

    origin: place of the data set in the configuration.  tally: counts the batches, where there is
        one.  watch: of the loader processes, None without any.
    """

    origin: str = "data"
    tally: Tally | None = None
    watch: Watch | None = None
    processes: Sequence[BaseProcess] = ()

    def __iter__(self) -> Any:
        """The batches of an epoch, without `FAULTS`."""
        before = set(multiprocessing.active_children()) if self.num_workers else set()
        known = self._iterator if self.persistent_workers else None
        if self.watch and known is None:
            self.watch.forget()
        batches = super().__iter__()
        if self.num_workers and known is None:
            self.processes = [
                each for each in multiprocessing.active_children() if each not in before
            ]
            _hold_back_deaths()
        return _Batches(self, batches)

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is restored."""


class _Batches(Iterator[Any]):
    """The batches of one epoch of a loader, each within the time that one may take."""

    def __init__(self, loader: Loader, batches: Iterator[Any]) -> None:
        self._loader, self._batches = loader, batches
        self._is_over = False

    def __next__(self) -> Any:
        try:
            batch = self._waited_for()
        except StopIteration:
            self._is_over = True
            raise
        faults = batch.pop(FAULTS, ()) if isinstance(batch, dict) else ()
        if self._loader.tally is not None:
            self._loader.tally.count(len(batch["sample_id"]), faults)
        return batch

    def _waited_for(self) -> Any:
        began = time.monotonic()
        while True:
            try:
                # when it is over, its processes may have ended, as they should
                with _waiting(() if self._is_over else self._loader.processes):
                    if not self._is_over:
                        self._require_alive()
                    return next(self._batches)
            except BadSample as error:
                raise ConfigError(
                    f"{self._loader.origin}: {_said(error)}; nothing takes its place here, as the "
                    "results would be of another image: repair the file, or remove it"
                ) from None
            except ConfigError as error:
                raise ConfigError(_said(error)) from None
            except RuntimeError as error:
                if str(error).startswith("DataLoader timed out"):
                    self._require_progress(began)
                    continue
                self._require_alive()
                raise self._explained(str(error)) or error from None

    def _explained(self, text: str) -> ConfigError | None:
        """What a failure of torch's means, where that is known."""
        if "shared memory" in text or "unable to write to file </torch" in text:
            last = text.strip().splitlines()[-1]
            return ConfigError(f"{self._loader.origin}: {last}; {_SHARED_MEMORY} or so")
        if text.startswith("DataLoader worker (pid"):
            return ConfigError(f"{self._loader.origin}: {text.strip()}; {_CAUSES}")
        return None

    def _require_alive(self) -> None:
        """Raise ConfigError when a loader process has ended before its work."""
        for process in self._loader.processes:
            if process.exitcode is not None:
                raise ConfigError(self._died(process))

    def _died(self, process: BaseProcess) -> str:
        code = process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        watch = self._loader.watch
        busy = [each for each in watch.busy() if each.pid == process.pid] if watch else []
        doing = f" while it read {self._name(busy[0])}" if busy else ""
        who = f"a loader process (pid {process.pid}) {how}{doing}"
        return f"{self._loader.origin}: {who}; {_CAUSES}"

    def _require_progress(self, began: float) -> None:
        """Raise ConfigError when a sample takes too long, or there is neither batch nor reading."""
        limit, watch = self._loader.timeout, self._loader.watch
        stuck = [each for each in watch.busy() if each.seconds >= limit] if watch else []
        if stuck:
            self._kill([each.pid for each in stuck])
            named = ", ".join(
                f"{self._name(each)} for {each.seconds:.3g} s (process {each.worker}, pid "
                f"{each.pid})"
                for each in stuck
            )
            raise ConfigError(
                f"{self._loader.origin}: has been reading {named}: longer than "
                f"data.params.timeout, {limit:g} s; is what it lies on still there?"
            )
        latest = max(began, watch.last_change() if watch else 0.0)
        if time.monotonic() - latest >= limit:
            pids = [each.pid for each in self._loader.processes if each.pid]
            self._kill(pids)
            raise ConfigError(
                f"{self._loader.origin}: no batch for {limit:g} s, data.params.timeout, and no "
                f"sample is being read; {_CAUSES}"
            )

    def _kill(self, pids: Sequence[int]) -> None:
        """End processes, whatever they wait for."""
        for process in self._loader.processes:
            if process.pid in pids:
                process.kill()
                process.join(_KILL_SECONDS)

    def _name(self, busy: Busy) -> str:
        dataset: Any = self._loader.dataset
        return name_of(dataset.data, busy.index)


def _said(error: Exception) -> str:
    """An error's own words, without the traceback of the process that it comes from."""
    return re.split(r"^[\w.]*(?:ConfigError|BadSample): ", str(error), flags=re.M)[-1].strip()


@contextmanager
def _waiting(processes: Sequence[BaseProcess]) -> Iterator[None]:
    global _waited_for
    _waited_for = processes
    try:
        yield
    finally:
        _waited_for = ()


def _hold_back_deaths() -> None:
    """Let the death of a loader process interrupt nothing but the wait for it.

    torch raises an error wherever the program happens to be, while a checkpoint is written for
    instance. It is as well noticed when the next batch is asked for.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    before = signal.getsignal(signal.SIGCHLD)
    if not isinstance(before, _HeldBack):
        # Lightning takes torch's answer away when a training ends, and torch gives it once
        signal.signal(signal.SIGCHLD, _HeldBack(before if callable(before) else None))


class _HeldBack:
    """An answer to SIGCHLD that raises no error about loader processes outside of `_waiting`."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            if self._answer is not None:
                self._answer(number, frame)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
        if any(each.exitcode for each in _waited_for):  # 0 is what torch asks for at the end
            raise RuntimeError("DataLoader worker (pid unknown) has ended")
