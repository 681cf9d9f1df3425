"""What is measured: where, in which precision, with how many images."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from ldm.memory import keep_freed_memory

__all__ = ["Precision", "Setting"]

Precision = Literal["bf16", "fp32"]


@dataclass(frozen=True)
class Setting:
    """Everything a contender needs to know besides the configuration.

    device: "cpu" or "cuda".  batch_size: images per step.
    threads: of a CPU; 0 leaves torch's choice.
    in_game: of a first stage, whether the discriminator has joined.
    compiled: run the networks through `torch.compile`.
    """

    device: str = "cpu"
    precision: Precision = "bf16"
    batch_size: int = 1
    threads: int = 1
    in_game: bool = True
    compiled: bool = False

    @property
    def is_cuda(self) -> bool:
        """Whether kernels run beside the program, and times need a synchronisation."""
        return self.device.startswith("cuda")

    def autocast(self) -> torch.autocast:
        """The context a training step runs in: float32 weights, products in the precision."""
        kind = self.device.partition(":")[0]
        return torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16")

    def apply(self) -> None:
        """Set the threads and, on a CPU, the allocator of this process as training does."""
        if self.threads:
            torch.set_num_threads(self.threads)
        if not self.is_cuda:
            keep_freed_memory()

    def at(self, **changes: Any) -> Setting:
        """This setting with some of its values changed."""
        return replace(self, **changes)

    def to_json(self) -> str:
        """As text, for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Setting:
        """The inverse of `to_json`."""
        return cls(**json.loads(text))
