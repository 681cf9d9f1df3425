"""Which checkpoint a training goes back to, and what is written after it did."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
import torch

from ldm.callbacks.checkpoints import LastCheckpoint

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
    """Write `last.ckpt` now, in place of one of what has been taken back; every process calls it."""
    if (last := _last(trainer)) is not None:
        trainer.save_checkpoint(last.path, weights_only=False)


def _last(trainer: pl.Trainer) -> LastCheckpoint | None:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((each for each in callbacks if isinstance(each, LastCheckpoint)), None)


def _newest(directory: Path, step: int) -> Path | None:
    steps = {path: _step_of(path) for path in directory.glob("*.ckpt")}
    before = {path: at for path, at in steps.items() if at is not None and at <= step}
    for path in sorted(before, key=lambda path: before[path], reverse=True):
        return path
    return None


def _step_of(path: Path) -> int | None:
    """Optimizer steps that a checkpoint has behind it; None where training cannot go on from it."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError):
        return None
    return state["global_step"] if "optimizer_states" in state else None
