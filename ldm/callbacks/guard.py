"""Keeps a training from ruin: holds back steps that are not finite, answers spikes of the loss."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from ldm.callbacks.diagnosis import (
    NON_FINITE_CAUSES,
    SPIKE_CAUSES,
    Step,
    dump,
    flat_message,
    spike_message,
)
from ldm.callbacks.divergence import Diverged, Rewound
from ldm.callbacks.guess import loss_of_a_guess
from ldm.callbacks.late import Late
from ldm.callbacks.progress import accumulation
from ldm.callbacks.rewinding import last_good, save_last
from ldm.callbacks.spikes import FlatDetector, Spike, SpikeDetector
from ldm.config import ConfigError
from ldm.log import log
from ldm.ranks import mean_over_ranks
from ldm.safe_step import SafeStep

__all__ = ["Guard"]

ACTIONS = ("warn", "rewind_and_skip", "rewind_and_lower")
_TOLD = 20  # held back steps that are each told of; of later ones every 100th is
_SCALE_STEPS = 16  # in which a gradient scaler comes down from 65536 to 1


class Guard(pl.Callback):
    """Watches every optimizer step; on by default.

    A step whose loss or gradients are not finite, on any process, is held back: weights,
    optimizers, averages and buffers stay as they were (`ldm.safe_step`). Its batch is written to
    `directory`. After `max_skips` of them in a row training ends, with code 1.

    A loss that jumps and stays (`ldm.callbacks.spikes`) is answered as `on_spike` says:
    `warn`; `rewind_and_skip` goes on from the last resume point before it, and the steps from
    `margin` before the spike to its end have no effect; `rewind_and_lower` multiplies the learning
    rate by `lower_by` instead. After `max_rewinds` training ends, with code 1.

    A loss that in `flat_after` steps has not fallen and is no better than a guess is warned of.

    On CUDA what happened is read a step late, so that nothing waits for the device.

    directory: where diagnoses go.  max_dumps: batches that are written there in a run.
    window, threshold, patience: see `SpikeDetector`.
    waits: whether the host looks at each step at once; by default where the device is the CPU.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        max_skips: int = 10,
        max_dumps: int = 5,
        on_spike: Literal["warn", "rewind_and_skip", "rewind_and_lower"] = "warn",
        window: int = 200,
        threshold: float = 8.0,
        patience: int = 8,
        margin: int = 10,
        lower_by: float = 0.5,
        max_rewinds: int = 3,
        flat_after: int = 5000,
        waits: bool | None = None,
    ) -> None:
        _check_least(max_skips=(max_skips, 1), max_dumps=(max_dumps, 0), window=(window, 10))
        _check_least(patience=(patience, 1), margin=(margin, 0), max_rewinds=(max_rewinds, 0))
        _check_least(flat_after=(flat_after, 20), threshold=(threshold, 1))
        if on_spike not in ACTIONS:
            raise ConfigError(f"on_spike: {on_spike!r}; expected one of {', '.join(ACTIONS)}")
        if not 0 < lower_by < 1:
            raise ConfigError(f"lower_by: {lower_by}; expected above 0 and below 1")
        self.directory = Path(directory)
        self.max_skips, self.max_dumps, self.max_rewinds = max_skips, max_dumps, max_rewinds
        self.on_spike, self.margin, self.lower_by = on_spike, margin, lower_by
        self.flat_after, self.waits = flat_after, waits
        self.spikes = SpikeDetector(window, threshold, patience)
        self.flat = FlatDetector(flat_after)
        self.guess: float | None = None
        self.in_a_row = 0  # steps held back up to now
        self.total_held = self.num_dumps = self.num_rewinds = 0
        self.rate_factor = 1.0  # on the learning rate; `GivenRate` reads it
        self.skipped: list[list[int]] = []  # first and last step of each range without effect
        self._safe = SafeStep()
        self._step: Step | None = None
        self._unread: deque[tuple[Step, Late]] = deque()
        self._found: list[Spike] = []
        self._rewinding = False

    # hooks

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have the model ask before each optimizer step."""
        self._safe = SafeStep(waits=self.waits)
        pl_module.safe_step = self._safe  # type: ignore[assignment]
        self._step, self._found = None, []
        self._unread.clear()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the model alone."""
        pl_module.safe_step = None  # type: ignore[assignment]

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """The same."""
        self.on_fit_end(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take note of the batch, and of what a step may spoil."""
        if self._step is None:
            number = trainer.global_step
            is_skipped = any(first <= number <= last for first, last in self.skipped)
            self._step = Step(number, trainer.current_epoch, is_skipped)
            self._safe.is_forced = is_skipped
            self._safe.begin(pl_module)
        if self.guess is None and not self._step.number:
            self.guess = loss_of_a_guess(pl_module, batch)
        self._step.indices.append(batch_idx)
        self._step.batches.append(batch)
        self._step.seeds.append(torch.initial_seed())

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """A loss that is not finite has gradients that are not, which all processes come to see."""
        if loss.requires_grad:
            is_finite = loss.detach().isfinite()
            loss.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: torch.where(is_finite, gradient, math.nan)
            )

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Judge the gradients, before they are clipped; a model may do so by itself."""
        if pl_module.automatic_optimization:
            self._safe.judge(optimizer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """At the end of a step, find out how the last one went, and answer.

        Raises Diverged, or Rewound.
        """
        step, count = self._step, accumulation(trainer)
        assert step is not None
        if isinstance(outputs, Mapping) and isinstance(outputs.get("loss"), Tensor):
            # Lightning has divided the losses that it accumulates
            share = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
            step.losses.append(outputs["loss"].detach() * share)
        if (batch_idx + 1) % count and not trainer.is_last_batch:
            return
        self._step, step.norm = None, self._safe.norm
        self._safe.end()
        self._unread.append((step, Late(self._measured(pl_module, step))))
        is_late = self.waits is False or (self.waits is None and pl_module.device.type != "cpu")
        self._read(trainer, pl_module, leave=int(is_late))
        self._answer(trainer)
        if self._rewinding:  # what is known now must outlive the process
            self._rewinding = False
            save_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the last step, too."""
        self.settle(trainer)

    def settle(self, trainer: pl.Trainer) -> None:
        """Read what is not read yet; at times when the device is waited for anyway.

        Raises Diverged when steps are being held back one after the other: such weights are not
        worth keeping over older ones.
        """
        self._read(trainer, trainer.lightning_module, leave=0)
        if self.in_a_row > 1 + _allowance(trainer):
            self._end(trainer)

    # what happened

    def _measured(self, pl_module: pl.LightningModule, step: Step) -> Tensor:
        """Whether the step was held back, and its loss: (2,), means over ranks."""
        watched = getattr(pl_module, "watched_loss", None)
        if watched is None and step.losses:
            watched = torch.stack(step.losses).mean()
        loss = torch.full((), math.nan) if watched is None else watched.detach().float()
        held = torch.as_tensor(self._safe.any_held, device=loss.device, dtype=loss.dtype)
        if isinstance(self._safe.any_held, bool):
            held = loss.new_full((), float(self._safe.any_held))
        return mean_over_ranks(torch.stack([held, loss]))

    def _read(self, trainer: pl.Trainer, pl_module: pl.LightningModule, leave: int) -> None:
        while len(self._unread) > leave:
            step, late = self._unread.popleft()
            held, loss = late.read()
            if step.is_skipped:
                continue
            if held > 0:
                self._note_held(trainer, pl_module, step, loss)
                continue
            self.in_a_row = 0
            if not math.isfinite(loss):  # a model that does not tell
                continue
            if spike := self.spikes.update(step.number, loss):
                self._found.append(spike)
            seen = self.flat.update(loss, self.guess)
            if seen is not None and self.guess is not None and trainer.is_global_zero:
                log.warning("%s", flat_message(seen, self.guess, self.flat_after))

    def _note_held(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: Step, loss: float
    ) -> None:
        self.in_a_row += 1
        if math.isfinite(loss) and self.in_a_row <= _allowance(trainer):
            return
        self.total_held += 1
        path = None
        if self.num_dumps < self.max_dumps:
            self.num_dumps += 1
            path = dump(self.directory, step, trainer, getattr(pl_module, "seed", None))
        if trainer.is_global_zero and (self.total_held <= _TOLD or self.total_held % 100 == 0):
            what = "loss" if not math.isfinite(loss) else "gradient"
            log.warning(
                "step %d has no effect: its %s is not finite%s (%d of such steps by now)",
                step.number,
                what,
                f"; its batch is in {path}" if path else "",
                self.total_held,
            )

    # what is done about it

    def _answer(self, trainer: pl.Trainer) -> None:
        if self.in_a_row >= self.max_skips + _allowance(trainer):
            self._end(trainer)
        if self._found:
            self._answer_spike(trainer, self._found.pop())

    def _end(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            log.error(
                "error: the last %d steps to step %d had losses or gradients that are not finite, "
                "so training ends; weights are those of before and checkpoints are kept. %s; "
                "batches are in %s",
                self.in_a_row,
                trainer.global_step,
                NON_FINITE_CAUSES,
                self.directory,
            )
        raise Diverged

    def _answer_spike(self, trainer: pl.Trainer, spike: Spike) -> None:
        seen = spike_message(spike)
        if self.on_spike == "warn":
            self._say(trainer, f"{seen}; {SPIKE_CAUSES}")
            return
        if self.num_rewinds >= self.max_rewinds:
            if trainer.is_global_zero:
                log.error("error: %s, after %d rewinds; %s", seen, self.num_rewinds, SPIKE_CAUSES)
            raise Diverged
        first = max(spike.first - self.margin, 0)
        path = last_good(trainer, first)
        if path is None:
            self._say(trainer, f"{seen}; there is no checkpoint of before to go on from")
            return
        self.num_rewinds += 1
        self._rewinding = True
        if self.on_spike == "rewind_and_skip":
            self.skipped.append([first, spike.last])
            done = f"steps {first} to {spike.last} are passed by"
        else:
            self.rate_factor *= self.lower_by
            done = f"the learning rate is multiplied by {self.rate_factor:g}"
        count = f"rewind {self.num_rewinds} of {self.max_rewinds}"
        self._say(trainer, f"{seen}; going on from {path} ({count}), {done}")
        raise Rewound(path)

    @staticmethod
    def _say(trainer: pl.Trainer, text: str) -> None:
        if trainer.is_global_zero:
            log.warning("%s", text)

    # what a checkpoint holds

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know to go on as this one."""
        return {
            "spikes": self.spikes.state_dict(),
            "flat": self.flat.state_dict(),
            "guess": self.guess,
            "in_a_row": self.in_a_row,
            **self._lasting(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up; what led to a rewind is not forgotten by it."""
        self.spikes.load_state_dict(state_dict["spikes"])
        self.flat.load_state_dict(state_dict["flat"])
        self.guess, self.in_a_row = state_dict["guess"], state_dict["in_a_row"]
        if self._rewinding:
            return
        for name in self._lasting():
            setattr(self, name, state_dict[name])

    def _lasting(self) -> dict[str, Any]:
        names = ("total_held", "num_dumps", "num_rewinds", "rate_factor", "skipped")
        return {name: getattr(self, name) for name in names}


def _allowance(trainer: pl.Trainer) -> int:
    """Steps in a row that a gradient scaler may hold back while it looks for its scale."""
    return 0 if getattr(trainer.precision_plugin, "scaler", None) is None else _SCALE_STEPS


def _check_least(**given: tuple[float, float]) -> None:
    for name, (value, least) in given.items():
        if value < least:
            raise ConfigError(f"{name}: {value}; expected {least} or more")
