"""The learning rate of a run that goes on."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl

from ldm.log import log

__all__ = ["GivenRate"]


class GivenRate(pl.Callback):
    """Trains on with the learning rate that this start was given, not with the checkpoint's.

    Optimizers and schedules come back with the rate they were saved with; where it is another one,
    it is replaced, and a schedule's factor multiplies the new one. Equal rates are left alone, to
    the bit.
    """

    def __init__(self) -> None:
        self._given: list[list[float]] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the rates, before a checkpoint's take their place."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        # a guard that has lowered the rate is known from the checkpoint by now
        factor = math.prod(getattr(each, "rate_factor", 1.0) for each in callbacks)
        self._given = [
            [factor * _base(group) for group in each.param_groups] for each in trainer.optimizers
        ]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put them back."""
        is_said = False
        for optimizer, given in zip(trainer.optimizers, self._given, strict=True):
            saved = [_base(group) for group in optimizer.param_groups]
            if saved == given or 0 in saved:
                continue
            if not is_said:
                log.info("lr = %g takes the place of the checkpoint's %g", given[0], saved[0])
            is_said = True
            for group, new, old in zip(optimizer.param_groups, given, saved, strict=True):
                group["lr"] *= new / old
                if "initial_lr" in group:
                    group["initial_lr"] = new
            for config in trainer.lr_scheduler_configs:
                if config.scheduler.optimizer is optimizer:
                    config.scheduler.base_lrs = list(given)


def _base(group: dict[str, Any]) -> float:
    """The rate of a group of parameters, before a schedule's factor."""
    rate: float = group.get("initial_lr", group["lr"])
    return rate
