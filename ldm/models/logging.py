"""When a trainer takes what is logged."""

from __future__ import annotations

import pytorch_lightning as pl

__all__ = ["log_is_due"]


def log_is_due(trainer: pl.Trainer, step: int) -> bool:
    """Whether the logger takes what this step logs: every n-th, counted from 1, or none."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined] # 0 with `barebones`
    return every > 0 and (step + 1) % every == 0
