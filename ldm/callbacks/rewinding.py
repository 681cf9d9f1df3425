"""Which checkpoint a training goes back to, and what is written after it did."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytorch_lightning as pl

from ldm.callbacks.checkpoints import LastCheckpoint
from ldm.io.manifest import Entry, damage, entries
from ldm.io.store import resume_points
from ldm.log import log

__all__ = ["last_good", "save_last"]


def last_good(trainer: pl.Trainer, step: int) -> Path | None:
    """The newest whole checkpoint of the run that was written before a step; None without one.

    All processes call this and find the same.
    """
    found = None
    if trainer.is_global_zero and (last := _last(trainer)) is not None:
        found = _newest(last.path.parent, step)
    name = trainer.strategy.broadcast(None if found is None else str(found))
    return None if name is None else Path(name)


def save_last(trainer: pl.Trainer) -> None:
    """Write `last.ckpt` now, in place of what has been taken back; every process calls this."""
    if (last := _last(trainer)) is not None:
        trainer.save_checkpoint(last.path, weights_only=False)


def _last(trainer: pl.Trainer) -> LastCheckpoint | None:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((each for each in callbacks if isinstance(each, LastCheckpoint)), None)


def _not_taken_back(directory: Path) -> Iterator[Entry]:
    """Whole checkpoints, the newest first, without those of steps that were trained anew since."""
    lowest = math.inf
    for entry in sorted(entries(directory).values(), key=lambda each: each.time, reverse=True):
        if entry.is_whole and entry.step is not None and entry.step <= lowest:
            lowest = entry.step
            yield entry


def _newest(directory: Path, step: int) -> Path | None:
    """The verified checkpoint of the highest step up to this one; resume points come first.

    Others were saved at a time of Lightning's choice, from which an epoch may not go on exactly.
    """
    points = {path.name for path in resume_points(directory)}
    before = [each for each in _not_taken_back(directory) if (each.step or 0) <= step]
    for entry in sorted(before, key=lambda each: each.file not in points):
        reason = damage(path := directory / entry.file)
        if reason is None:
            return path
        log.warning("%s is passed by: %s", path, reason)
    return None
