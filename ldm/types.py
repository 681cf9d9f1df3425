"""Values that travel between the parts: a condition, a prediction, the terms of a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

__all__ = ["Conditioning", "LossTerms", "Prediction"]


@dataclass(frozen=True)
class Conditioning:
    """What tau_theta says about a batch, sorted by where it enters the denoiser.

    crossattn: (B, N, D), tokens the spatial transformers attend to.
    concat: (B, C, h, w), channels joined to x_t.
    vector: (B, D) joined to the time embedding, or (B,) integer class labels.
    """

    crossattn: Tensor | None = None
    concat: Tensor | None = None
    vector: Tensor | None = None

    def slots(self) -> dict[str, Tensor]:
        """The slots that are filled, by name."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def batch_size(self) -> int:
        """Number of examples B; 0 when no slot is filled."""
        return next((len(value) for value in self.slots().values()), 0)

    def to(self, *args: torch.device | torch.dtype | str) -> Conditioning:
        """The same condition elsewhere; integer labels keep their type."""
        moved = self.slots()
        for argument in args:
            for name, value in moved.items():
                if not _casts_labels(value, argument):
                    moved[name] = value.to(argument)
        return Conditioning(**moved)

    def __getitem__(self, index: slice | Tensor) -> Conditioning:
        """The condition of some of the examples."""
        return Conditioning(**{name: value[index] for name, value in self.slots().items()})

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Conditions of several batches, joined along the batch.

        Raises ValueError when the parts fill different slots.
        """
        names = [tuple(part.slots()) for part in parts]
        if len(set(names)) > 1:
            raise ValueError(f"cannot join conditions that fill different slots: {names}")
        return Conditioning(
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in names[0]}
        )


def _casts_labels(value: Tensor, argument: object) -> bool:
    return isinstance(argument, torch.dtype) and not value.is_floating_point()


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a denoiser believes about x_t = alpha x0 + sigma eps.

    x0, eps: (B, C, H, W), consistent with each other at the x_t they were made for.
    """

    x0: Tensor
    eps: Tensor


@dataclass(frozen=True)
class LossTerms:
    """A loss and what it is made of, per example and unreduced.

    total: (B,), what is minimised.  parts: name -> (B,), for the log; they need not sum to total.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
