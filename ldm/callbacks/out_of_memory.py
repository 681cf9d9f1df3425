"""What is done at once where a training ran out of memory, so that its state can be saved."""

from __future__ import annotations

import pytorch_lightning as pl

from ldm.memory import is_out_of_memory, release_memory

__all__ = ["RoomToSave"]


class RoomToSave(pl.Callback):
    """Frees what a step held that ran out of memory, before other callbacks save a checkpoint.

    Stands before them. Activations, which the error's own traceback keeps, and gradients go; they
    are in no checkpoint.

    phase: what ran out of memory, in words; None as long as nothing has.
    """

    phase: str | None = None

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Let go of the step."""
        if not is_out_of_memory(exception):
            return
        self.phase = _phase(trainer)
        pl_module.zero_grad(set_to_none=True)
        release_memory(exception)


def _phase(trainer: pl.Trainer) -> str:
    if trainer.sanity_checking:
        return "the validation before training"
    if trainer.testing:
        return "the test"
    return "validation" if trainer.validating else "training"
