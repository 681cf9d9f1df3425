"""What a training pays for its safety: the same steps with the trainer's callbacks and without."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import pytorch_lightning as pl
import torch

from ldm.callbacks.run import RunRecord
from ldm.cli.arguments import parse
from ldm.cli.rundir import new_run
from ldm.cli.settings import settings
from ldm.cli.trainer import build_trainer, make_quiet, trainer_options
from ldm.config import (
    ConfigError,
    check,
    instantiate_from_config,
    instantiate_model,
    without_checkpoints,
)
from ldm.evaluation.tables import markdown_table

__all__ = ["HEADER", "Cost", "SafetyCosts", "safety_costs"]

# callbacks that are there for people, or only when a checkpoint is; every other one is safety
COMFORT = frozenset(
    {
        "ImageLogger",
        "LearningRateMonitor",
        "ModelCheckpoint",
        "MonitorCheck",
        "Throughput",
        "TrainingProgress",
    }
)
NONE, ALL = "none", "all"
# what a callback leaves with the module, which goes with it
_LEFT_BEHIND = {"Guard": "safe_step"}
_STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
HEADER = ["part", "in its hooks, us a step", "share of a step", "step with / without", "quartiles"]
SAVED_EVERY = 1000  # steps, the default of `every_n_train_steps`


@dataclass
class Cost:
    """Of one part of the safety, or of all.

    hooks: seconds a step inside its methods.  ratios: of the time of a step with it, and nothing
    else, to one without any, one for each round.
    """

    name: str
    hooks: float = 0.0
    ratios: list[float] = field(default_factory=list)

    def cells(self, step: float) -> list[str]:
        """The row of a table.  step: seconds."""
        low, middle, high = quantiles(self.ratios, n=4, method="inclusive")
        return [
            self.name,
            f"{1e6 * self.hooks:.0f}",
            f"{100 * self.hooks / step:.2f} %",
            f"{middle:.4f}",
            f"{low:.4f} to {high:.4f}",
        ]


@dataclass(frozen=True)
class SafetyCosts:
    """What was measured.

    step: seconds of a step without any of it, of the processor's time on a CPU.  costs: of each
    part, and of all at the end.  saving: wall seconds of writing and verifying a checkpoint.
    wall: seconds that such a step takes on this machine now.
    """

    step: float
    wall: float
    saving: float
    costs: list[Cost]

    def table(self) -> str:
        """The costs, in Markdown."""
        return markdown_table(HEADER, [cost.cells(self.step) for cost in self.costs])

    @property
    def saving_share(self) -> float:
        """Of a checkpoint's time in that of the steps between two."""
        return self.saving / (SAVED_EVERY * self.wall)


def safety_costs(
    path: str,
    overrides: Sequence[str],
    *,
    precision: str = "32-true",
    device: str = "cpu",
    rounds: int = 7,
    block: int = 4,
) -> SafetyCosts:
    """Train by a configuration, in blocks of steps that take turns: none, each part, all of them.

    Its data and its model without checkpoints; validation and pictures are left out. Callbacks are
    those of the trainer that do something in a step, by the names of their classes.
    precision: Lightning's name.  rounds: of all blocks, 2 or more.
    block: steps of each that count.
    Raises ConfigError for what is wrong in the configuration, and for too few rounds.
    """
    if rounds < 2:
        raise ConfigError(f"rounds: {rounds}; expected 2 or more, to tell how far they are apart")
    make_quiet()
    with tempfile.TemporaryDirectory() as place:
        flags = [
            "-t",
            "-l",
            place,
            "--precision",
            precision,
            "--max_steps",
            "-1",
            "--max_epochs",
            "-1",
        ]
        flags += ["--limit_val_batches", "0", "--num_sanity_val_steps", "0"]
        flags += ["--accelerator", "cpu" if device == "cpu" else "gpu", "--devices", "1"]
        args = parse(["-b", path, *flags, *overrides])
        run = new_run(place, "cost", args.base, "")
        config = settings(args, run)
        config["model"] = without_checkpoints(config["model"])
        config["lightning"].setdefault("callbacks", {})["image_logger"] = None
        check(config)
        options = trainer_options(config["lightning"]["trainer"])
        data: Any = instantiate_from_config(config["data"], path="data")
        data.setup()
        model = _model(config["model"], options)
        record = RunRecord(run.configs, run.now, config)
        trainer = build_trainer(options, config["lightning"], run, monitor=None, record=record)
        clock = _Clock(trainer, rounds, block, Path(place) / "cost.ckpt")
        trainer.fit(model, datamodule=data)
        return clock.costs()


def _model(block: Any, options: dict[str, Any]) -> Any:
    model: Any = instantiate_model(block)
    rate = block.get("learning_rate") or block.get("base_learning_rate")
    model.learning_rate = float(rate) / 100  # weights stay near their random start
    if not model.automatic_optimization:
        for name in ("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"):
            if name in options:
                setattr(model, name, options.pop(name))
    return model


class _Clock(pl.Callback):
    """Stands behind all others: times steps, and says which callbacks the next ones have.

    Two rounds go before the first that counts, and a step before the first of each block.
    """

    def __init__(self, trainer: Any, rounds: int, block: int, path: Path) -> None:
        self.kept = [c for c in trainer.callbacks if type(c).__name__ in COMFORT]
        self.everything = [*trainer.callbacks, self]
        self.parts: dict[str, list[pl.Callback]] = {}
        for callback in trainer.callbacks:
            if callback not in self.kept and any(_acts(callback, hook) for hook in _STEP_HOOKS):
                self.parts.setdefault(type(callback).__name__, []).append(callback)
        self.times: dict[str, list[list[float]]] = {v: [] for v in (NONE, *self.parts, ALL)}
        self.walls: list[float] = []
        self.hooks: dict[str, list[float]] = {name: [] for name in self.parts}
        variants = list(self.times)
        # each round begins elsewhere, so that none always follows the same one
        self.plan = [v for i in range(rounds + 2) for v in _rotated(variants, i)]
        self.rounds, self.block, self.path = rounds, block, path
        self.variant, self.in_block, self.saving = ALL, 0, 0.0
        self.since = self.since_wall = 0.0
        self.left: dict[str, Any] = {}
        self.since = self.since_wall = 0.0
        for name, callbacks in self.parts.items():
            for callback in callbacks:
                self._time_hooks(name, callback)
        trainer.callbacks = self.everything

    def _time_hooks(self, name: str, callback: pl.Callback) -> None:
        for hook in _STEP_HOOKS:
            if _acts(callback, hook):
                setattr(callback, hook, self._timed(name, getattr(callback, hook)))

    def _timed(self, name: str, hook: Callable[..., None]) -> Callable[..., None]:
        def timed(*args: Any, **kwargs: Any) -> None:
            start = time.perf_counter() if torch.cuda.is_available() else time.process_time()
            hook(*args, **kwargs)
            end = time.perf_counter() if torch.cuda.is_available() else time.process_time()
            if self.variant == ALL and self.in_block:
                self.hooks[name].append(end - start)

        return timed

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with the first block."""
        self._begin(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note the time of the step; after the last of a block begin the next."""
        busy, wall = _now(pl_module.device)
        if self.in_block:
            self.times[self.variant][-1].append(busy - self.since)
            if self.variant == NONE:
                self.walls.append(wall - self.since_wall)
        self.in_block += 1
        if self.in_block > self.block:
            self._begin(trainer, pl_module)
        self.since, self.since_wall = _now(pl_module.device)

    def _begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.in_block = 0
        if not self.plan:
            self.variant = "end"
            trainer.callbacks = self.everything  # type: ignore[attr-defined]
            self._restore(pl_module, self.parts)
            trainer.should_stop = True
            return
        self.variant = self.plan.pop(0)
        self.times[self.variant].append([])
        names = self.parts if self.variant == ALL else {self.variant}
        chosen = [c for name in names for c in self.parts.get(name, ())]
        parts = [c for callbacks in self.parts.values() for c in callbacks]
        trainer.callbacks = [  # type: ignore[attr-defined]
            c for c in self.everything if c in chosen or c not in parts
        ]
        self._restore(pl_module, names)

    def _restore(self, module: pl.LightningModule, names: Any) -> None:
        """Have the module what the callbacks of these names left with it, and nothing of others."""
        for name, attribute in _LEFT_BEHIND.items():
            if name in self.parts:
                self.left.setdefault(attribute, getattr(module, attribute, None))
                setattr(module, attribute, self.left[attribute] if name in names else None)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Time what a checkpoint takes; the fastest of three."""
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            trainer.save_checkpoint(self.path, weights_only=False)
            seconds.append(time.perf_counter() - start)
        self.saving = min(seconds)

    def costs(self) -> SafetyCosts:
        """What was measured, of the rounds that count."""
        counted = {v: [median(each) for each in blocks[2:]] for v, blocks in self.times.items()}
        none = counted.pop(NONE)
        steps = self.rounds * self.block + 2 * self.block
        found = [
            Cost(
                name,
                sum(self.hooks.get(name, ())) / steps,
                [a / b for a, b in zip(times, none, strict=True)],
            )
            for name, times in counted.items()
        ]
        found[-1].hooks = sum(cost.hooks for cost in found)
        return SafetyCosts(median(none), median(self.walls), self.saving, found)


def _acts(callback: pl.Callback, hook: str) -> bool:
    return getattr(type(callback), hook) is not getattr(pl.Callback, hook)


def _rotated(values: Sequence[str], by: int) -> list[str]:
    by %= len(values)
    return [*values[by:], *values[:by]]


def _now(device: torch.device) -> tuple[float, float]:
    """Seconds of the processor and of the wall; on a GPU those of the wall, once it is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    wall = time.perf_counter()
    return (time.process_time() if device.type == "cpu" else wall), wall
