"""Numbers of a device that are read when they have long been there."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Late"]


class Late:
    """A copy of a small tensor on its way to the host.

    values: (n,), of any device; on CUDA the copy takes its turn behind what the device has to do.
    """

    def __init__(self, values: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._values = values.detach()
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values.detach(), non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def read(self) -> list[float]:
        """The numbers; waits until the copy is there."""
        if self._event is not None:
            self._event.synchronize()
        found: list[float] = self._values.tolist()
        return found
