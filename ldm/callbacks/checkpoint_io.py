"""How Lightning's checkpoints come to the disk: safely, and while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from ldm.io import store
from ldm.io.first_stage import FirstStageFile, with_first_stage
from ldm.io.manifest import LAST, require_intact
from ldm.io.snapshot import is_on_device, on_host
from ldm.log import log

__all__ = ["AtomicCheckpointIO"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints so that a whole one is there at every instant; see `ldm.io.store`.

    A system that cannot write (no space, no permission, a directory that went) does not end the
    training: it is told of in one line, what was written before stands, and `failure` says why
    until `last.ckpt` has been written again.

    Reads tensors and plain values only (`weights_only=True`), whatever is asked.

    keep: number of resume points.
    in_background: write in a thread while training goes on, which then waits only until all
        tensors are copied to the host's memory; one at a time, so a second save waits for the
        first. None: where the tensors are on a device. The file is the same either way.
    """

    def __init__(self, *, keep: int = 2, in_background: bool | None = None) -> None:
        self.keep = keep
        self.in_background = in_background
        self.first_stage: FirstStageFile | None = None  # where it is stored once for the run
        self.next_attempt = "the next save"  # for the message when one fails
        self.failure: OSError | None = None  # of the latest attempt at `last.ckpt`
        self._has_failed = False  # the latest attempt at any file
        self._unremoved: list[Path] = []
        self._writer: ThreadPoolExecutor | None = None
        self._pending: list[Future[None]] = []

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any = None,
    ) -> None:
        """Write a checkpoint, now or in the background; `last.ckpt` names the newest.

        An OSError is logged and kept in `failure`, not raised.
        """
        self.wait()
        path = Path(path)
        given: Mapping[str, Any] = checkpoint
        if self.first_stage is not None:
            try:
                given = self.first_stage.taken_out(given, path)
            except OSError as error:
                self._fail(path, given, error)
                return
        is_device = is_on_device(given)
        in_background = is_device if self.in_background is None else self.in_background
        if is_device or in_background:
            given = on_host(given)
        if in_background:
            self._submit(lambda: self._write(given, path))
        else:
            self._write(given, path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint when what was written after it is safe."""
        if self._pending:
            self._submit(lambda: self._remove(Path(path)))
        else:
            self._remove(Path(path))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = "cpu",
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Read a checkpoint, its first stage with it.

        Raises ConfigError when it is not what its manifest entry says, or its first stage is
        missing.
        """
        self.wait()
        require_intact(path)
        read = torch.load(path, map_location=map_location, weights_only=True)
        return with_first_stage(read, Path(path))  # type: ignore[no-any-return]

    def check(self) -> None:
        """Raise what went wrong in the background and is no matter of files; waits for nothing."""
        if self._pending and all(each.done() for each in self._pending):
            self.wait()

    def wait(self) -> None:
        """Wait until everything is written; raises what `check` does."""
        while self._pending:
            self._pending.pop(0).result()

    def teardown(self) -> None:
        """Finish what is being written."""
        self.wait()
        if self._writer is not None:
            self._writer.shutdown()
            self._writer = None

    def _submit(self, task: Callable[[], None]) -> None:
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending.append(self._writer.submit(task))

    def _write(self, checkpoint: Mapping[str, Any], path: Path) -> None:
        try:
            store.save(checkpoint, path, keep=self.keep)
        except OSError as error:
            self._fail(path, checkpoint, error)
            return
        self._has_failed = False
        if path.name == LAST:
            self.failure = None
        removable, self._unremoved = self._unremoved, []
        for each in removable:
            if each != path:
                self._remove(each)

    def _remove(self, path: Path) -> None:
        """Remove a file, but not in favour of one that could not be written."""
        if self._has_failed:
            self._unremoved.append(path)
            return
        try:
            store.remove(path)
        except OSError as error:
            log.warning("%s could not be removed: %s", path, error.strerror or error)

    def _fail(self, path: Path, checkpoint: Mapping[str, Any], error: OSError) -> None:
        self._has_failed = True
        if path.name == LAST:
            self.failure = error
        standing = None
        with suppress(OSError):
            standing = next(iter(store.resume_points(path.parent)), None)
        log.error(
            "could not write %s of step %s: %s; %s, and %s tries again",
            path,
            checkpoint.get("global_step", "?"),
            error.strerror or error,
            f"{standing.name} still stands" if standing else "there is no earlier one",
            self.next_attempt,
        )
