"""Writes down what a child trains on: samples, times, noise and losses, by step and sample.

It wraps the package's own functions in the child that calls `record`; the package knows nothing of
it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from ldm.diffusion.draws import KeyedDraws
from ldm.diffusion.objective import Objective


def record(path: str) -> None:
    """From here on, a line of JSON for every draw: its step, the samples, and what was drawn."""
    file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115  # to the end of the child

    def note(what: str, step: int, ids: Iterable[Any], values: list[Any]) -> None:
        row = {"what": what, "step": step, "ids": list(ids), "values": values}
        file.write(json.dumps(row) + "\n")

    _note_batches(note)
    _note_draws(note)
    _note_losses(note)


def _note_batches(note: Any) -> None:
    started = pl.LightningModule.on_train_batch_start

    def on_train_batch_start(self: Any, batch: Any, batch_idx: int) -> Any:
        note("batch", self.global_step, batch["sample_id"], [])
        return started(self, batch, batch_idx)

    pl.LightningModule.on_train_batch_start = on_train_batch_start


def _note_draws(note: Any) -> None:
    normal, uniform = KeyedDraws.normal, KeyedDraws.uniform

    def noted_normal(self: KeyedDraws, shape: Any, stream: str) -> Tensor:
        numbers = normal(self, shape, stream)
        note(f"{stream} of {self.seed}", self.step, self.keys, [_hash(row) for row in numbers])
        return numbers

    def noted_uniform(self: KeyedDraws, stream: str) -> Tensor:
        numbers = uniform(self, stream)
        note(f"{stream} of {self.seed}", self.step, self.keys, numbers.tolist())
        return numbers

    KeyedDraws.normal, KeyedDraws.uniform = noted_normal, noted_uniform


def _note_losses(note: Any) -> None:
    terms_of, at = Objective.__call__, Objective.at
    drawing: list[KeyedDraws] = []  # of the batch that is worked on

    def noted_terms(self: Objective, *args: Any, draws: KeyedDraws, **kwargs: Any) -> Any:
        drawing.append(draws)
        terms = terms_of(self, *args, draws=draws, **kwargs)
        note("loss", draws.step, draws.keys, terms.total.tolist())
        drawing.pop()
        return terms

    def noted_at(self: Objective, *args: Any, t: Tensor, eps: Tensor, **kwargs: Any) -> Any:
        for draws in drawing:  # none in validation
            note("time", draws.step, draws.keys, t.tolist())
            note("noise", draws.step, draws.keys, [_hash(row) for row in eps])
        return at(self, *args, t=t, eps=eps, **kwargs)

    Objective.__call__, Objective.at = noted_terms, noted_at


def _hash(row: Tensor) -> str:
    return hashlib.blake2b(row.detach().cpu().numpy().tobytes(), digest_size=8).hexdigest()
