"""What checkpoints take on disk, and whether there is room for them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.cli.report.collector import Collector
from ldm.cli.report.sections import Section, amount
from ldm.cli.trainer import HISTORY, HISTORY_PARAMS, RESUME_PARAMS

__all__ = ["disk_table"]


def disk_table(
    checkpoint: int,
    weights: int,
    first_stage: int,
    lightning: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    directory: Path,
    keeps_best: bool,
    findings: Collector,
) -> Section:
    """Bytes of one checkpoint and of all that a run keeps, beside what is free.

    checkpoint: of one with the optimizer's state.  weights: of one without.
    first_stage: of them those of a frozen first stage, which lies beside unless it is embedded.
    directory: where runs go.  keeps_best: whether something is validated.
    """
    table = Section("disk")
    best = _num_best(lightning, options) if keeps_best else 0
    own = RESUME_PARAMS | ((lightning.get("modelcheckpoint") or {}).get("params") or {})
    points = own["resume_points"] if isinstance(own["resume_points"], int) else 1
    beside = 0 if own["embed_first_stage"] else first_stage
    checkpoint -= beside
    kept = (best + points) * checkpoint + beside
    told = f"{points} to go on from" + (f", {best} best" if best else "")
    told += ", the first stage beside them" if beside else ""
    history = (lightning.get("callbacks") or {}).get(HISTORY)
    if history is not None and (options.get("max_steps") or -1) > 0:
        every = (history.get("params") or {}).get("every_n_train_steps", 10000)
        most = (history.get("params") or {}).get("save_top_k", HISTORY_PARAMS["save_top_k"])
        count = options["max_steps"] // every
        count = count if most < 0 else min(count, most)
        kept += count * (weights - beside)
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
