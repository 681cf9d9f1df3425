"""What a training that goes wrong leaves behind for those who look for the reason."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from safetensors.torch import save_file
from torch import Tensor

from ldm.callbacks.spikes import Spike
from ldm.log import log

__all__ = ["FLAT_CAUSES", "NON_FINITE_CAUSES", "SPIKE_CAUSES", "Step", "dump", "flat_message"]

NON_FINITE_CAUSES = (
    "likely: a learning rate too high (model.learning_rate, or base_learning_rate that is scaled), "
    "values that are not finite in the data (see diagnosis/), or fp16; try a tenth of the rate, "
    "lightning.trainer.gradient_clip_val: 1.0, or lightning.trainer.precision: bf16-mixed"
)
SPIKE_CAUSES = (
    "likely: a learning rate too high, no warm-up, no gradient clipping, or data that is unlike "
    "the rest; try half of the rate, a scheduler_config that warms up, or "
    "lightning.trainer.gradient_clip_val: 1.0"
)
FLAT_CAUSES = (
    "latents far from unit standard deviation (model.params.scale_by_std or scale_factor)",
    "a first stage without trained weights (model.params.first_stage_config.params.ckpt_path)",
    "images that are not in [-1, 1], or all alike (data.params.train)",
    "a condition that says nothing (model.params.cond_stage_config, cond_stage_key)",
    "a learning rate far too high or too low (model.learning_rate)",
)


@dataclass
class Step:
    """An optimizer step as it happens: number from 0, place, and what it is made of.

    batches: of this process, one for each that is accumulated.
    seeds: that torch's global generator was seeded with before each, which is its whole state.
    losses: of each, 0-d, where the model has told.
    norm: of the gradients that were judged last.
    is_skipped: it has no effect, since it led to a spike before.
    """

    number: int
    epoch: int
    is_skipped: bool = False
    indices: list[int] = field(default_factory=list)
    batches: list[Any] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    norm: Tensor | None = None


def dump(directory: Path, step: Step, trainer: pl.Trainer, seed: int | None) -> Path | None:
    """Write a step's batches of this process: what names them as JSON, tensors as safetensors.

    `step-N.json` and `step-N.safetensors`; of processes but the first `step-N-rank-R`.
    seed: of the run, which with the step and the sample gives noise and times.
    Returns the JSON's path; None, with a warning, where it cannot be written.
    """
    rank = trainer.global_rank
    stem = f"step-{step.number}" + (f"-rank-{rank}" if rank else "")
    tensors: dict[str, Tensor] = {}
    batches = []
    parts = zip(step.indices, step.batches, step.seeds, strict=True)
    for place, (index, batch, torch_seed) in enumerate(parts):
        told: dict[str, Any] = {"batch_idx": index, "torch_seed": torch_seed}
        if place < len(step.losses):
            told["loss"] = _number(step.losses[place])
        entries = batch if isinstance(batch, Mapping) else {"batch": batch}
        told["entries"] = {
            name: _described(f"{place}.{name}", value, tensors) for name, value in entries.items()
        }
        batches.append(told)
    record = {
        "step": step.number,
        "epoch": step.epoch,
        "rank": rank,
        "world_size": trainer.world_size,
        "precision": trainer.precision,
        "seed": seed,
        "gradient_norm": None if step.norm is None else _number(step.norm),
        "batches": batches,
        "tensors": f"{stem}.safetensors" if tensors else None,
    }
    path = directory / f"{stem}.json"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if tensors:
            save_file(tensors, directory / f"{stem}.safetensors")
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        log.warning("%s could not be written: %s", path, error)
        return None
    return path


def flat_message(seen: float, guess: float, steps: int) -> str:
    """What to say of a loss that stays where a guess is."""
    causes = "".join(f"\n  - {cause}" for cause in FLAT_CAUSES)
    return (
        f"the loss has not fallen in {steps} steps and is {seen:.4g}, where one that does not look "
        f"at its input gets {guess:.4g}; likely causes:{causes}"
    )


def spike_message(spike: Spike) -> str:
    """What was seen of a spike."""
    return (
        f"the loss was {spike.usual:.4g} and is {spike.seen:.4g} in steps {spike.first} to "
        f"{spike.last}, {spike.score:.1f} or more robust standard deviations higher"
    )


def _described(name: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    """A batch entry as JSON has it; tensors are put aside under a name."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        kind = str(value.dtype).removeprefix("torch.")
        finite = bool(value.isfinite().all()) if value.is_floating_point() else True
        return {"tensor": name, "shape": list(value.shape), "dtype": kind, "is_finite": finite}
    if isinstance(value, list | tuple):
        return [_described(f"{name}.{i}", each, tensors) for i, each in enumerate(value)]
    return value if isinstance(value, str | int | float | bool) or value is None else repr(value)


def _number(value: Tensor) -> float | str:
    """A number as JSON has it, where NaN and infinities are words."""
    number = float(torch.as_tensor(value).detach())
    return number if math.isfinite(number) else str(number)
