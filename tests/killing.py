"""What children of the crash harness call on themselves: a death at a named point, and notes."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from typing import Any

import pytorch_lightning as pl

from ldm.io import atomic


def die_at(point: str, occurrence: int) -> None:
    """End this process by SIGKILL when saving comes to a point for the n-th time, from 1."""
    reached: Counter[str] = Counter()

    def at(name: str) -> None:
        reached[name] += 1
        if name == point and reached[name] == occurrence:
            os.kill(os.getpid(), signal.SIGKILL)

    atomic.reached = at


class Noted(pl.Callback):
    """Notes when training starts, from which step and checkpoint, and when it ends."""

    def __init__(self, path: str) -> None:
        self.path = path

    def _note(self, trainer: pl.Trainer, what: str) -> None:
        if not trainer.is_global_zero:
            return
        note = {
            "what": what,
            "step": trainer.global_step,
            "from": trainer.ckpt_path and str(trainer.ckpt_path),
            "run": trainer.default_root_dir,
            "cpu": time.process_time(),
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(note) + "\n")

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._note(trainer, "start")

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._note(trainer, "end")
