"""Where a sampler's run is, for wrappers that must know it without asking the device.

The times that a denoiser is given are a tensor on the device of the network: to read them on the
host waits for all that is queued there. A sampler knows them as numbers, and says so around every
evaluation; what a wrapper keeps from one evaluation to the next is kept here too, for one run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Memory", "Moment", "current_moment", "host_times", "moment_of_run"]


@dataclass(frozen=True)
class Memory:
    """What wrappers keep during one run, each one value of its own."""

    # with the owner, so that its id is not given to another object before the run ends
    _kept: dict[int, tuple[object, Any]] = field(default_factory=dict)

    def recall(self, owner: object) -> Any:
        """What the owner kept at the evaluation before; None at its first of this run."""
        return self._kept[id(owner)][1] if id(owner) in self._kept else None

    def keep(self, owner: object, value: object) -> None:
        """Keep this for the owner's next evaluation."""
        self._kept[id(owner)] = (owner, value)


@dataclass(frozen=True, slots=True)
class Moment:
    """One evaluation of a run.

    time: of all examples, on the schedule's scale.  memory: of the run.
    """

    time: float
    memory: Memory


_MOMENT: ContextVar[Moment | None] = ContextVar("ldm_moment", default=None)


def current_moment() -> Moment | None:
    """The evaluation that is being made; None outside of a run."""
    return _MOMENT.get()


@contextmanager
def moment_of_run(time: float, memory: Memory) -> Iterator[None]:
    """Say that the evaluation made inside is at this time of a run."""
    token = _MOMENT.set(Moment(time, memory))
    try:
        yield
    finally:
        _MOMENT.reset(token)


def host_times(t: Tensor) -> NDArray[np.float64]:
    """Times (B,) as numbers on the host, float64: (1,) in a run, whose examples share one time.

    Outside of a run t itself is read, (B,), which waits for its device.
    """
    moment = current_moment()
    if moment is not None:
        return np.array([moment.time])
    return np.array(t.tolist(), dtype=np.float64)
