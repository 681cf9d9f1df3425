"""The image logger: when pictures of a model are made, and where they go."""

from __future__ import annotations

import inspect
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
from ldm.memory import is_out_of_memory, release_memory
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
    micro_batch: rows that the network is given at once; by default as many as the batch has, so
        that a picture needs no more memory than a training step. What is drawn does not depend on
        it. Where memory runs out nevertheless, training goes on without that picture, and the next
        one is drawn in parts half as large.
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
        micro_batch: Positive | None = None,
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
        self.micro_batch = micro_batch
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
        pictures = self._pictures(trainer, module, batch, split)
        if pictures is None:
            release_memory()  # here, where the error and what it held are gone
            return
        for name, images in pictures.items():
            self._write(trainer, split, name, images, index)

    def _pictures(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, split: str
    ) -> dict[str, Tensor] | None:
        """What the model shows, on the CPU; None where there was not enough memory for it."""
        rows = min(self.micro_batch or batch_size(batch), batch_size(batch))
        make: Any = module.log_images
        options = {**self.kwargs, "split": split}
        if "micro_batch" in inspect.signature(make).parameters:
            options["micro_batch"] = rows
        else:
            rows = 1  # as a first stage shows its images: there is nothing to make smaller
        examples = first_examples(batch, min(self.max_images, batch_size(batch)))
        was_training = module.training
        module.eval()
        try:
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                pictures: dict[str, Tensor] = make(examples, **options)
                return {name: images.cpu() for name, images in pictures.items()}
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._shrink(rows, str(error).partition("\n")[0])
            return None
        finally:
            module.train(was_training)

    def _shrink(self, rows: int, reason: str) -> None:
        """Draw the next picture in smaller parts; nothing more where these were single images."""
        self.disabled = rows == 1
        half = max(rows // 2, 1)
        next_one = "no more are made" if self.disabled else f"the next is drawn {half} at a time"
        if self.disabled or self.micro_batch is None:  # once, and when it is given up
            log.warning(
                "no memory for a picture (%s): training goes on without it, and %s; to begin so, "
                "add lightning.callbacks.image_logger.params.%s",
                reason,
                next_one,
                "disabled=true" if self.disabled else f"micro_batch={half}",
            )
        self.micro_batch = half

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
