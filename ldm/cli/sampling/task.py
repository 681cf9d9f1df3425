"""What a sampling script does: its own flags, and what it makes of them for each image."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm.cli.sampling.entries import Item, batch_of
from ldm.cli.sampling.options import PIXEL_FLAGS
from ldm.diffusion.denoiser import Denoiser
from ldm.models.diffusion.sampling import SampleOptions

__all__ = ["Given", "Images", "Task"]

Images = list[NDArray[np.uint8]]


@dataclass(frozen=True)
class Given:
    """What the images of a batch are drawn from, beside their seeds.

    batch: entries that the model's encoders read.  options: of its `sample`.
    gradient: a wrapper of the denoiser that guides by a gradient.
    finish: what becomes of the images, (H, W, C) uint8 each, before they are written.
    """

    batch: dict[str, Any] | None
    options: SampleOptions = field(default_factory=SampleOptions)
    gradient: Callable[[Denoiser], Denoiser] | None = None
    finish: Callable[[Images], Images] | None = None


class Task(ABC):
    """A sampling script, `scripts/<name>.py`, but for what all of them share."""

    name: str
    description: str
    pixel_flags: tuple[str, ...] = ()  # of its own, those that bear on pixels

    @property
    def all_pixel_flags(self) -> tuple[str, ...]:
        """Names of all flags that bear on pixels."""
        return (*PIXEL_FLAGS, *self.pixel_flags)

    @abstractmethod
    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Add the script's own flags, and set its defaults for the shared ones."""

    @abstractmethod
    def items(self, model: Any, args: argparse.Namespace) -> list[Item]:
        """What each image is drawn from, without its seed, in plain values that a PNG can record.

        Raises ConfigError for what the user got wrong.
        """

    def prepare(self, model: Any, args: argparse.Namespace) -> None:  # noqa: B027 - few need any
        """Load what goes with the model; ConfigError for what does not fit it."""

    def written_size(self, args: argparse.Namespace, item: Item) -> Sequence[int] | None:
        """Height and width in pixels that an item's image is written at; None for that of all."""
        size: Sequence[int] | None = item.get("size")
        return size

    def given(self, model: Any, args: argparse.Namespace, items: Sequence[Item]) -> Given:
        """What the images of these items are drawn from."""
        return Given(batch_of(model, items))
