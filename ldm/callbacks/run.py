"""The record of a run: its configuration and environment, in its directory and its checkpoints."""

from __future__ import annotations

import hashlib
import platform
import random
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import yaml  # type: ignore[import-untyped]

__all__ = ["RunRecord", "SeededSteps", "environment"]

_PACKAGES = ("torch", "torchvision", "pytorch-lightning", "transformers", "omegaconf", "numpy")


@cache
def environment() -> dict[str, str]:
    """Versions, git revision (of a clone that has one) and machine, for the record."""
    versions = {name: metadata.version(name) for name in _PACKAGES}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    return versions | {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "device": device,
        "git": git_revision(),
    }


def git_revision() -> str:
    """The commit of this code, with "-dirty" where files differ; "" where git cannot say."""
    words = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    here = Path(__file__).parent
    try:
        found = subprocess.run(words, cwd=here, capture_output=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # no git, or a file system that does not answer
        return ""
    return found.stdout.decode().strip()


class RunRecord(pl.Callback):
    """Writes both configurations and the environment when training starts.

    The project's configuration also goes into every checkpoint, as YAML text under `config`, and
    versions, machine and git revision as text under `environment`: notes for people. Nothing is
    ever built from them.
    """

    def __init__(self, configs: str | Path, now: str, config: Mapping[str, Any]) -> None:
        self.configs = Path(configs)
        self.now = now
        self.has_begun = False  # to train; there may be nothing left to
        project = {key: value for key, value in config.items() if key != "lightning"}
        self.seed: int = config["data"]["params"]["seed"]
        self.project = yaml.safe_dump(project, sort_keys=False)
        self.lightning = yaml.safe_dump(
            {"lightning": config.get("lightning") or {}}, sort_keys=False
        )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the files, on rank 0."""
        if not trainer.is_global_zero:
            return
        self.configs.mkdir(parents=True, exist_ok=True)
        files = {
            "project": self.project,
            "lightning": self.lightning,
            "environment": yaml.safe_dump(environment()),
        }
        for name, text in files.items():
            (self.configs / f"{self.now}-{name}.yaml").write_text(text, encoding="utf-8")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take note that there is something to train."""
        self.has_begun = True

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the configuration and the environment, as text."""
        checkpoint["config"] = self.project
        checkpoint["environment"] = yaml.safe_dump(environment())


class SeededSteps(pl.Callback):
    """Seeds the global generators before each batch, by run, process and batch.

    Those of torch, its devices, numpy and Python. Noise and times have generators of their own;
    these are left with dropout, and with what a user's code may draw. A resumed run draws what it
    would have drawn, so no checkpoint needs their state.

    seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed; the device is not waited for."""
        place = (self.seed, trainer.global_rank, trainer.current_epoch, batch_idx)
        digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
        torch.manual_seed(int.from_bytes(digest, "big", signed=True))
        np.random.seed(int.from_bytes(digest[:4], "big"))  # noqa: NPY002 - a user's code may use it
        random.seed(digest)
