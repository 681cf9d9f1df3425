"""What checkpoints take on disk, and whether there is room for them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.cli.report.collector import Collector
from ldm.cli.report.sections import Section, amount

__all__ = ["disk_table"]


def disk_table(
    checkpoint: int,
    weights: int,
    lightning: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    directory: Path,
    keeps_best: bool,
    findings: Collector,
) -> Section:
    """Bytes of one checkpoint and of all that a run keeps, beside what is free.

    checkpoint: of one with the optimizer's state.  weights: of one without.
    directory: where runs go.  keeps_best: whether something is validated.
    """
    table = Section("disk")
    best = _num_best(lightning, options) if keeps_best else 0
    kept = (best + 1) * checkpoint
    told = f"last.ckpt and {best} best" if best else "last.ckpt"
    history = (lightning.get("callbacks") or {}).get("metrics_over_trainsteps_checkpoint")
    if history is not None and (options.get("max_steps") or -1) > 0:
        every = (history.get("params") or {}).get("every_n_train_steps", 10000)
        count = options["max_steps"] // every
        kept += count * weights
        told += f", {count} of weights alone"
    needed = kept + checkpoint  # a new one is written whole before an old one goes
    free = shutil.disk_usage(_existing(directory)).free
    table.add("one checkpoint", amount(checkpoint, "B"), checkpoint)
    table.add("kept", f"{amount(kept, 'B')}: {told}", kept)
    table.add("free", f"{amount(free, 'B')} in {_existing(directory)}", free)
    if needed > free:
        message = (
            f"the run will need {amount(needed, 'B')} for checkpoints, and {amount(free, 'B')} "
            f"are free in {_existing(directory)}"
        )
        hint = "give another --logdir, or a lower lightning.modelcheckpoint.params.save_top_k"
        findings.add("warning", "lightning.modelcheckpoint", message, hint)
    return table


def _num_best(lightning: Mapping[str, Any], options: Mapping[str, Any]) -> int:
    """Best checkpoints that are kept; of all, as many as there are validations."""
    params = (lightning.get("modelcheckpoint") or {}).get("params") or {}
    count = params.get("save_top_k", 3)
    if not isinstance(count, int) or count >= 0:
        return count if isinstance(count, int) else 3
    every, last = options.get("val_check_interval"), options.get("max_steps") or -1
    return max(1, last // every) if isinstance(every, int) and every > 0 < last else 1


def _existing(directory: Path) -> Path:
    """A directory, or the nearest one above it that exists."""
    directory = directory.resolve()
    return next(each for each in (directory, *directory.parents) if each.is_dir())
