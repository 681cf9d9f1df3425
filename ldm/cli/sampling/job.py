"""A job: many images, drawn in batches into a directory, which goes on where it stopped."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from ldm.cli.first_stages import versions
from ldm.cli.running import autocast
from ldm.cli.sampling.arrays import write_npz
from ldm.cli.sampling.entries import Item
from ldm.cli.sampling.guiding import Guidance, guidance_of
from ldm.cli.sampling.options import sample_options
from ldm.cli.sampling.preview import Preview
from ldm.cli.sampling.record import Record, is_whole, save_png
from ldm.cli.sampling.task import Given, Task
from ldm.conditioning.encodings import Encodings
from ldm.config import ConfigError
from ldm.hashing import hash64
from ldm.models.diffusion.sampling import SampleOptions
from ldm.nets.compilation import room_for_shapes
from ldm.samplers.base import Callback
from ldm.tensor import to_uint8

__all__ = ["Job", "sheet"]

GRID_LIMIT = 64  # images on a grid


@dataclass(frozen=True)
class Job:
    """Images to draw with a model.

    items: of every image.  args: the flags.  record: what PNGs say of model and flags; items and
    index are those of each batch.  options: of the model's `sample`.  guidance: that of the flags,
    if any.  out: the directory.  encodings: of captions, encoded once for the whole job.
    """

    task: Task
    model: Any
    args: argparse.Namespace
    items: Sequence[Item]
    record: Record
    options: SampleOptions
    guidance: Guidance | None
    out: Path
    encodings: Encodings = field(default_factory=Encodings)

    @staticmethod
    def of(
        task: Task,
        model: Any,
        args: argparse.Namespace,
        items: Sequence[Item],
        *,
        checkpoint: str,
        block: dict[str, Any],
    ) -> Job:
        """The job that flags ask for; ConfigError for what the model cannot do.

        checkpoint: SHA-256 of its file.  block: configuration of the model.
        """
        if args.npz and args.from_png is None:
            _require_one_size([task.written_size(args, item) for item in items])
        guidance = guidance_of(args, model)
        options: SampleOptions = {**sample_options(args, model), "guide": guidance}
        flags = {name: getattr(args, name, None) for name in task.all_pixel_flags}
        record = Record(
            script=task.name,
            flags=flags,
            solver=repr(options["sampler"]),
            items=[],
            index=0,
            run=args.run,
            sha256=checkpoint,
            model=block,
            threads=torch.get_num_threads(),
            versions=versions(),
        )
        return Job(task, model, args, items, record, options, guidance, Path(args.out))

    def path(self, index: int) -> Path:
        """Where an image goes."""
        return self.out / f"{index:05}.png"

    def batches(self) -> list[range]:
        """The images of each batch, by their numbers, all of one size; they never change."""
        batches: list[range] = []
        for index, item in enumerate(self.items):
            last = batches[-1] if batches else range(0)
            is_alike = index > 0 and item.get("size") == self.items[index - 1].get("size")
            if is_alike and len(last) < self.args.batch_size:
                batches[-1] = range(last.start, index + 1)
            else:
                batches.append(range(index, index + 1))
        return batches

    def together(self, batch: range) -> list[int]:
        """The images that are computed with a batch, itself first.

        A compiled network would be compiled once more for a smaller batch, so its last image is
        drawn again until it is as large as the others of its size.
        """
        if not self.args.compiled or len(batch) == self.args.batch_size:
            return list(batch)
        size = self.items[batch.start].get("size")
        alike = [b for b in self.batches() if self.items[b.start].get("size") == size]
        return [*batch, *[batch[-1]] * (max(map(len, alike)) - len(batch))]

    def missing(self, batch: range) -> bool:
        """Whether an image of the batch is not there yet, or not whole."""
        return not all(is_whole(self.path(index)) for index in batch)

    def count(self) -> int:
        """How many images are there."""
        names = (name.removesuffix(".png") for name in os.listdir(self.out))
        return sum(name.isdigit() for name in names)

    def begin(self) -> None:
        """Note in the directory which job it is of; ConfigError if it is of another."""
        told = {
            "script": self.record.script,
            "checkpoint": self.record.sha256,
            "images": len(self.items),
            "seed": self.items[0]["seed"],
            "items": f"{hash64(json.dumps(list(self.items)).encode()):016x}",
            "batch_size": self.args.batch_size,
            "solver": self.record.solver,
            **self.record.flags,
        }
        path = self.out / "job.json"
        if not path.exists():
            if any(self.out.glob("[0-9]*.png")):
                raise ConfigError(f"--out {self.out}: holds images already; give another directory")
            path.write_text(json.dumps(told, indent=1), encoding="utf-8")
            return
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path}: is damaged ({error}); give another directory") from error
        if not isinstance(before, dict):
            raise ConfigError(f"{path}: is no record of a job; give another directory")
        for key, value in json.loads(json.dumps(told)).items():
            if before.get(key) != value:
                raise ConfigError(
                    f"--out {self.out}: its images were drawn with {key} {before.get(key)}, not "
                    f"{value}; give another directory, or the same flags to go on"
                )

    def draw(
        self, batch: Sequence[int], callback: Callback | None = None
    ) -> list[NDArray[np.uint8]]:
        """Images (H, W, C) uint8 of some items.  callback: see `ldm.samplers.base.Sampler`."""
        items = [self.items[index] for index in batch]
        given = self.task.given(self.model, self.args, items)
        options: SampleOptions = {**self.options, **given.options}
        options["callback"], options["encodings"] = callback, self.encodings
        seeds = [item["seed"] for item in items]
        with self._room(), autocast(self.model.device, self.args.precision):
            options["guide"] = self._guide(given)
            drawn = self.model.sample(seeds, given.batch, **options)
        _require_finite(drawn, seeds)
        images = list(to_uint8(drawn).cpu().numpy())
        return images if given.finish is None else given.finish(images)

    def _guide(self, given: Given) -> Guidance | None:
        """The guidance of a batch."""
        guide = self.guidance
        if given.gradient is not None:
            guide = guide or Guidance(self.model.schedule, self.args.scale)
            guide = replace(guide, gradient=given.gradient)
        if guide is not None and self.args.weak_model is not None:
            told, null = self.args.weak_model.told(given.batch)
            guide = replace(guide, weak_told=told, weak_null=null)
        return guide

    @cached_property
    def num_sizes(self) -> int:
        """Of how many sizes its images are."""
        return len({tuple(item.get("size") or ()) for item in self.items})

    def _room(self) -> AbstractContextManager[None]:
        # batches of a compiled job are filled up: each size is one shape
        return room_for_shapes(self.num_sizes) if self.args.compiled else nullcontext()

    def write(self, batch: range) -> None:
        """Draw a batch and write its images."""
        drawn = self.together(batch)
        items = [self.items[index] for index in drawn]
        preview = None if self.args.preview is None else Preview(self.args.preview)
        images = self.draw(drawn, preview)[: len(batch)]
        if preview is not None:
            preview.write(self.model, [self.path(index) for index in batch])
        for index, image in zip(batch, images, strict=True):
            place = index - batch.start
            told = replace(self.record, items=items, index=place)
            save_png(image, self.path(index), told.text)

    def drawn(self) -> Iterator[NDArray[np.uint8]]:
        """All images from their files, (H, W, C) uint8."""
        for index in range(len(self.items)):
            with Image.open(self.path(index)) as image:
                pixels = np.asarray(image)
            yield pixels[..., None] if pixels.ndim == 2 else pixels

    def finish(self) -> None:
        """Write what holds many images, the grid and the arrays; remove what was cut off."""
        for part in self.out.glob("*.part"):
            part.unlink(missing_ok=True)
        if not self.args.skip_grid:
            shown = [image for image, _ in zip(self.drawn(), range(GRID_LIMIT), strict=False)]
            grid = sheet(shown, self.args.n_rows or math.ceil(math.sqrt(len(shown))))
            save_png(grid, self.out / "grid.png", {"solver": self.record.solver})
        if self.args.npz:
            shape = (len(self.items), *next(self.drawn()).shape)
            write_npz(self.drawn(), shape, self.out / "images.npz")


def _require_finite(images: Tensor, seeds: Sequence[int]) -> None:
    """Raise ConfigError for images (B, C, H, W) with values that are no pixels."""
    for seed, is_finite in zip(seeds, images.isfinite().flatten(1).all(1).tolist(), strict=True):
        if not is_finite:
            raise ConfigError(
                f"the image of seed {seed} is not finite, and is not written: expected numbers; a "
                "smaller scale of guidance, --precision fp32 or a model that has not diverged "
                "may draw it"
            )


def _require_one_size(sizes: Sequence[Sequence[int] | None]) -> None:
    """Raise ConfigError for images of several sizes (H, W), which no array holds."""
    found = dict.fromkeys(tuple(size) for size in sizes if size is not None)
    if len(found) > 1:
        first, second = (f"{height} x {width}" for height, width in list(found)[:2])
        raise ConfigError(
            f"--npz: one array holds images of one size, but some are drawn at {first} and some at "
            f"{second} pixels; leave --npz out, or give images of one size"
        )


def sheet(images: Sequence[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    """Images (H, W, C) uint8 as one picture, from left to right and top to bottom.

    Those that are smaller than others get a black margin to the right and below.
    """
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    pages = [
        np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)))
        for image in images
    ]
    stacked = torch.from_numpy(np.stack(pages)).permute(0, 3, 1, 2)
    return make_grid(stacked, nrow=columns, padding=2).permute(1, 2, 0).numpy()  # type: ignore[no-any-return]
