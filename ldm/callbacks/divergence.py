"""Trainings that lead nowhere, and weights that are no finite numbers any more."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["Diverged", "Rewound", "non_finite"]


class Diverged(SystemExit):
    """Training leads nowhere; the process ends with code 1."""

    def __init__(self) -> None:
        super().__init__(1)


class Rewound(Diverged):
    """Training is to go on from an earlier checkpoint, as `CheckedTrainer` does.

    Under another trainer it ends.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path


def non_finite(model: nn.Module) -> Tensor:
    """How many of a model's parameters, averaged ones among them, have a NaN or an infinity: 0-d.

    The device is not waited for.
    """
    found = [~p.detach().isfinite().all() for p in model.parameters() if not p.is_meta]
    return torch.stack(found).sum() if found else torch.zeros((), dtype=torch.int64)
