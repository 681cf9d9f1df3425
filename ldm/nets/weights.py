"""Starting values of weights."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

__all__ = ["zeroed"]

M = TypeVar("M", bound=nn.Module)


def zeroed(module: M) -> M:
    """The module with all its parameters at zero: a residual branch that starts as the identity."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    return module
