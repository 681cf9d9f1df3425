"""What a check is about: the command, its configuration, its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ldm.cli.arguments import Arguments
from ldm.cli.report.costs import Plan
from ldm.cli.rundir import RunDir

__all__ = ["Setting"]


@dataclass(frozen=True)
class Setting:
    """Everything that tables are made of, beside the model.

    options: arguments of the trainer.  datasets: by split.  made: splits whose data is made up.
    """

    args: Arguments
    run: RunDir
    config: Mapping[str, Any]
    options: Mapping[str, Any]
    datasets: Mapping[str, Any]
    made: frozenset[str]

    @property
    def lightning(self) -> Mapping[str, Any]:
        """The block `lightning`."""
        return self.config.get("lightning") or {}

    @property
    def batch_size(self) -> int:
        """Images per device and batch; 1 where the configuration's is no number."""
        size = (self.config["data"].get("params") or {}).get("batch_size")
        return size if isinstance(size, int) and size > 0 else 1

    @property
    def accumulate(self) -> int:
        """Batches per optimizer step."""
        return self.options.get("accumulate_grad_batches") or 1

    @property
    def device(self) -> str:
        """Where it is trained, cpu or cuda."""
        is_cpu = self.options["accelerator"] == "cpu" or not torch.cuda.is_available()
        return "cpu" if is_cpu else "cuda"

    @property
    def num_devices(self) -> int:
        """Devices of all machines together."""
        devices = self.options.get("devices", 1)
        if isinstance(devices, list):
            count = len(devices)
        elif isinstance(devices, int) and devices > 0:
            count = devices
        else:
            count = max(1, torch.cuda.device_count()) if self.device == "cuda" else 1
        return count * (self.options.get("num_nodes") or 1)

    @property
    def pictures(self) -> int:
        """How many pictures are drawn at once while it trains."""
        logger = (self.lightning.get("callbacks") or {}).get("image_logger") or {}
        count = (logger.get("params") or {}).get("max_images", 4)
        return min(count, self.batch_size) if isinstance(count, int) and count > 0 else 1

    @property
    def plan(self) -> Plan:
        """How a step is taken."""
        precision = str(self.options["precision"])
        return Plan(self.batch_size, self.accumulate, precision, self.device)

    @property
    def steps(self) -> int | None:
        """Optimizer steps to the end; None where only a time limit ends the training."""
        last = self.options.get("max_steps") or -1
        epochs = self.options.get("max_epochs")
        by_epochs = None
        data = self.datasets.get("train")
        if epochs and epochs > 0 and data is not None and "train" not in self.made:
            each = len(data) // (self.batch_size * self.num_devices * self.accumulate)
            by_epochs = epochs * each
        found = [each for each in (last if last > 0 else None, by_epochs) if each is not None]
        return min(found, default=None)
