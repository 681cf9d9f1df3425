"""Parts of a network that autocast must leave alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["without_autocast"]


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Inside, operations on the device of x keep the precision of their inputs."""
    # the meta device has no autocast, and torch refuses to switch off what is not there
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
