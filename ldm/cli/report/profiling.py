"""A few real steps, timed, of which nothing is written: how long the training will take."""

from __future__ import annotations

import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch

from ldm.callbacks.progress import accumulation
from ldm.callbacks.run import RunRecord
from ldm.cli.report.collector import Collector
from ldm.cli.report.costs import Costs
from ldm.cli.report.sections import Section, amount
from ldm.cli.report.setting import Setting
from ldm.cli.trainer import build_trainer
from ldm.config import instantiate_from_config

__all__ = ["StepTimes", "peak_since", "profile_table", "resident"]

_DAY = 86400


class StepTimes(pl.Callback):
    """Seconds between the ends of optimizer steps, the device having done everything."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    @property
    def seconds(self) -> list[float]:
        """Of each step but the first, which also starts libraries and takes memory."""
        return [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)]

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Read the clock at the end of a step."""
        if (batch_idx + 1) % accumulation(trainer) == 0:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)
            self.ends.append(time.perf_counter())


def profile_table(setting: Setting, costs: Costs | None, findings: Collector) -> Section:
    """Take `--profile N` steps as configured, on one device, and tell their time and memory."""
    table = Section("measured")
    times = StepTimes()
    _warm_up(setting.device)
    before = resident()
    _forget_peak()
    fitted = findings.attempt(lambda: _fit(setting, times), "model")
    if fitted is None or not times.seconds:
        return table
    is_cuda = setting.device == "cuda"
    peak = torch.cuda.max_memory_allocated() if is_cuda else peak_since(before)
    seconds = median(times.seconds)
    images = setting.batch_size * setting.accumulate
    told = f"{seconds:.3g} s, {images / seconds:.3g} images/s, of {len(times.seconds)} steps"
    table.add("a step", told, seconds)
    beside = f", {costs.peak / peak:.2f} of it estimated" if costs is not None and peak else ""
    table.add("training, at most", amount(peak, "B") + beside, peak)
    if (steps := setting.steps) is not None:
        days = steps * seconds / _DAY
        table.add("to the end", f"{days:.3g} days, {steps} steps on one such device", days)
    return table


def _fit(setting: Setting, times: StepTimes) -> bool:
    from ldm.cli.train import _model

    seed = setting.config["data"]["params"]["seed"]
    pl.seed_everything(seed, workers=True, verbose=False)
    options = dict(setting.options)
    data = instantiate_from_config(setting.config["data"], path="data")
    data.datasets.update(setting.datasets)
    model = _model(setting.config["model"], options, seed)
    # one more than asked for, as the first is not timed; a trial of Lightning's writes nothing
    batches = (setting.args.profile + 1) * setting.accumulate
    options |= {"fast_dev_run": batches, "devices": 1}
    options.pop("strategy", None)
    record = RunRecord(setting.run.configs, setting.run.now, dict(setting.config))
    trainer = build_trainer(options, setting.lightning, setting.run, monitor=None, record=record)
    trainer.limit_val_batches = 0
    bars = pl.callbacks.ProgressBar  # which would stand in the report
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    callbacks[:] = [*(each for each in callbacks if not isinstance(each, bars)), times]
    model.learning_rate = 1e-6  # weights stay near where they are
    if setting.args.compile:
        model.compile_networks()
    trainer.fit(model, datamodule=data)
    return True


def _warm_up(device: str) -> None:
    """Start the libraries behind a step, whose memory is no model's."""
    x = torch.randn(1, 32, 8, 8, device=device, requires_grad=True)
    torch.nn.Conv2d(32, 32, 3, device=device)(x).sum().backward()


def resident() -> int:
    """Bytes of this process in memory now."""
    return _status("VmRSS") or _most_resident()


def peak_since(before: int) -> int:
    """Most bytes of this process in memory, beyond so many."""
    return (_status("VmHWM") or _most_resident()) - before


def _most_resident() -> int:
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * (1 if sys.platform == "darwin" else 1024)


def _forget_peak() -> None:
    """Have Linux count the peak anew, where it lets a process do so."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _status(key: str) -> int:
    """A number of Linux' own book-keeping in bytes, 0 elsewhere."""
    path = Path("/proc/self/status")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)
