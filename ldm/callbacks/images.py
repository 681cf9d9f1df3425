"""The image logger: when pictures of a model are made, and where they go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from ldm.callbacks.throughput import batch_size
from ldm.log import log
from ldm.ranges import Positive
from ldm.tensor import to_uint8

__all__ = ["ImageLogger", "grid"]


def grid(images: Tensor, columns: int = 4) -> NDArray[np.uint8]:
    """Images (B, C, H, W) in [-1, 1] as one picture (H', W', 3) uint8.

    One channel is shown grey, as the first of two is; of more than three, the first three.
    """
    pictures = to_uint8(images).permute(0, 3, 1, 2)
    pictures = pictures[:, : 1 if pictures.shape[1] < 3 else 3]
    sheet = make_grid(pictures.cpu(), nrow=columns, padding=2)  # one channel becomes three
    return sheet.permute(1, 2, 0).numpy()  # type: ignore[no-any-return]


class ImageLogger(pl.Callback):
    """Calls the model's `log_images` now and then and writes what it returns as PNG grids.

    batch_frequency: optimizer steps between two pictures.
    max_images: examples per picture.
    increase_log_steps: also at steps 1, 2, 4, ... up to `batch_frequency`.
    clamp: clip to [-1, 1] first.  rescale: images are in [-1, 1] (false: in [0, 1]).
    log_on_batch_idx: count batches rather than optimizer steps.
    log_first_step: also before the first step.
    log_images_kwargs: passed on to `log_images`.
    directory: where files go, `images/` of the run by default; TensorBoard gets them too.
    """

    def __init__(
        self,
        batch_frequency: Positive = 750,
        max_images: Positive = 4,
        clamp: bool = True,
        increase_log_steps: bool = True,
        rescale: bool = True,
        disabled: bool = False,
        log_on_batch_idx: bool = False,
        log_first_step: bool = False,
        log_images_kwargs: dict[str, Any] | None = None,
        directory: str | None = None,
    ) -> None:
        if batch_frequency < 1:
            raise ValueError(f"batch_frequency is {batch_frequency}; expected 1 or more steps")
        self.batch_frequency = batch_frequency
        self.max_images = max_images
        self.clamp = clamp
        self.rescale = rescale
        self.disabled = disabled
        self.log_on_batch_idx = log_on_batch_idx
        self.log_first_step = log_first_step
        self.kwargs = log_images_kwargs or {}
        self.directory = directory
        self._early = {2**n for n in range(batch_frequency.bit_length())}
        if not increase_log_steps:
            self._early = set()
        self._last = {"train": -1, "val": -1}

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Picture the training batch when it is time."""
        step = batch_idx if self.log_on_batch_idx else trainer.global_step
        due = step % self.batch_frequency == 0 or step in self._early
        if due and (step > 0 or self.log_first_step):
            self._log(trainer, pl_module, batch, batch_idx, "train")

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Picture the first validation batch, always the same examples."""
        if batch_idx == 0 and not trainer.sanity_checking:
            self._log(trainer, pl_module, batch, batch_idx, "val")

    def _log(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        batch: Any,
        index: int,
        split: str,
    ) -> None:
        step = trainer.global_step
        if self.disabled or self._last[split] == step or not hasattr(module, "log_images"):
            return
        self._last[split] = step
        if not trainer.is_global_zero:
            return
        count = min(self.max_images, batch_size(batch))
        was_training = module.training
        module.eval()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            make: Any = module.log_images
            pictures = make(first_examples(batch, count), split=split, **self.kwargs)
        module.train(was_training)
        for name, images in pictures.items():
            self._write(trainer, split, name, images, index)

    def _write(
        self, trainer: pl.Trainer, split: str, name: str, images: Tensor, index: int
    ) -> None:
        if not self.rescale:
            images = images * 2 - 1
        sheet = grid(images, columns=4)
        root = Path(self.directory or Path(trainer.default_root_dir) / "images") / split
        root.mkdir(parents=True, exist_ok=True)
        step, epoch = trainer.global_step, trainer.current_epoch
        path = root / f"{name}_gs-{step:06}_e-{epoch:06}_b-{index:06}.png"
        Image.fromarray(sheet).save(path)
        for logger in trainer.loggers:
            experiment: Any = getattr(logger, "experiment", None)
            if hasattr(experiment, "add_image"):
                experiment.add_image(f"{split}/{name}", sheet, step, dataformats="HWC")
        log.debug("wrote %s", path)


def first_examples(batch: dict[str, Any], count: int) -> dict[str, Any]:
    """The first examples of a batch of tensors and lists."""
    return {key: value[:count] for key, value in batch.items()}
