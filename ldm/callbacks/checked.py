"""A trainer that never stores weights that are no finite numbers, and goes back when told so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ldm.callbacks.checkpoints import LastCheckpoint
from ldm.callbacks.divergence import Diverged, Rewound, non_finite
from ldm.callbacks.guard import Guard
from ldm.log import log
from ldm.ranks import sum_over_ranks

__all__ = ["CheckedTrainer"]


class CheckedTrainer(pl.Trainer):
    """Lightning's trainer, which writes no checkpoint of weights that are not finite.

    It ends the training instead, in all processes. Checking waits for the device, as writing does.
    Where a guard takes a training back to a checkpoint, it is fitted again from there.
    """

    def fit(self, model: pl.LightningModule, *args: Any, **options: Any) -> None:
        """As Lightning's, as often as a guard goes back."""
        while True:
            try:
                super().fit(model, *args, **options)
                return
            except Rewound as rewound:
                options["ckpt_path"] = str(rewound.path)
                # what Lightning leaves out after an exception
                model.on_fit_end()

    def save_checkpoint(
        self,
        filepath: str | Path,
        weights_only: bool | None = None,
        storage_options: Any = None,
    ) -> None:
        """Write a checkpoint; every process calls this.

        Raises Diverged, after the first process has said so.
        """
        for guard in self.callbacks:  # type: ignore[attr-defined]
            if isinstance(guard, Guard):
                guard.settle(self)
        count = non_finite(self.lightning_module).to(self.strategy.root_device)
        if total := int(sum_over_ranks(count)):
            if self.is_global_zero:
                log.error("error: %s", self._diverged(int(count) or total))
            raise Diverged
        super().save_checkpoint(filepath, weights_only, storage_options)

    def _diverged(self, count: int) -> str:
        tensors = len(list(self.lightning_module.parameters()))
        what = (
            f"after step {self.global_step} {count} of {tensors} tensors of the weights are not "
            "finite, so training ends and they are not saved"
        )
        written = (call.path for call in self.callbacks if isinstance(call, LastCheckpoint))  # type: ignore[attr-defined]
        kept = next((path for path in written if path.is_file()), self.ckpt_path)
        if kept is None:
            return f"{what}; nothing had been saved yet: start anew with a smaller learning rate"
        return (
            f"{what}; {kept} is kept: go on from it, or an earlier one, at a smaller learning rate"
        )
