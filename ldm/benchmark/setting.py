"""What is measured: where, in which precision, with how many images, by which clocks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import torch

from ldm.config import ConfigError
from ldm.memory import keep_freed_memory

__all__ = ["Elapsed", "Precision", "Setting"]

Precision = Literal["bf16", "fp32"]


class Elapsed(NamedTuple):
    """Seconds of one call.

    busy: of the processor, summed over its threads; on a GPU the same as `wall`, since a processor
    that waits for it is as busy as it is not.  wall: that passed.
    """

    busy: float
    wall: float

    def __sub__(self, start: Elapsed) -> Elapsed:
        """From one reading of the clocks to another."""
        return Elapsed(self.busy - start.busy, self.wall - start.wall)


@dataclass(frozen=True)
class Setting:
    """Everything a contender needs to know besides the configuration.

    device: "cpu", "cuda" or "cuda:N".  batch_size: images per step.
    num_threads: of a CPU; 0 leaves torch's choice.
    with_discriminator: of a first stage, whether the discriminator has joined.
    is_compiled: run the networks through `torch.compile`.
    """

    device: str = "cpu"
    precision: Precision = "bf16"
    batch_size: int = 1
    num_threads: int = 1
    with_discriminator: bool = True
    is_compiled: bool = False

    @property
    def is_cuda(self) -> bool:
        """Whether kernels run beside the program, and times need a synchronisation."""
        return self.device.startswith("cuda")

    def autocast(self) -> torch.autocast:
        """The context a training step runs in: float32 weights, products in the precision."""
        kind = self.device.partition(":")[0]
        return torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16")

    def apply(self) -> None:
        """Set this process up as training does: its threads, its GPU, on a CPU its allocator.

        Raises ConfigError for a device that is not there, or that is neither a CPU nor CUDA.
        """
        self._require_device()
        if self.num_threads:
            torch.set_num_threads(self.num_threads)
        if not self.is_cuda:
            keep_freed_memory()
        elif ":" in self.device:
            torch.cuda.set_device(self.device)

    def _require_device(self) -> None:
        try:
            device = torch.device(self.device)
        except RuntimeError:
            device = None
        if device is None or device.type not in ("cpu", "cuda"):
            raise ConfigError(f"--device {self.device}: expected cpu, cuda or cuda:N")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise ConfigError(f"--device {self.device}: torch sees {count} CUDA devices")

    def timed(self, function: Callable[[], object]) -> Elapsed:
        """How long a call takes, until its device has done everything."""
        start = self.now()
        function()
        return self.now() - start

    def now(self) -> Elapsed:
        """What both clocks say once the device has done everything."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)
        wall = time.perf_counter()
        return Elapsed(wall if self.is_cuda else time.process_time(), wall)

    def replaced(self, **changes: Any) -> Setting:
        """This setting with some of its values changed."""
        return replace(self, **changes)

    def to_json(self) -> str:
        """As text, for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Setting:
        """The inverse of `to_json`."""
        return cls(**json.loads(text))
