"""scripts/semantic.py: images of maps that say what is where."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm.cli.running import check_least
from ldm.cli.sampling.entries import Item, kind_of, require_script
from ldm.cli.sampling.inputs import fitted, fitting_size, unchanged
from ldm.cli.sampling.sizes import cells_of, latent_size
from ldm.cli.sampling.task import Given, Task
from ldm.cli.sampling.told import add_told, told
from ldm.config import ConfigError
from ldm.data.decoding import UNREADABLE, reason
from ldm.data.maps import EXTENSIONS, Labels, labels_in_range, map_size, read_map
from ldm.evaluation.pictures import image_files
from ldm.io.digest import sha256_of

__all__ = ["Semantic"]


class Semantic(Task):
    """Draws images of maps of labels, `--n` of each."""

    name = "semantic"
    description = """Draw images of maps that say what is where (semantic synthesis).

python scripts/semantic.py logs/RUN map.png --n 4
python scripts/semantic.py logs/RUN maps/ --void 255

A map holds one label per pixel: a PNG with a palette, whose indices are the labels, a grey one,
or an array of integers in a .npy file."""
    pixel_flags = ("void",)

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Maps, and which of their numbers says nothing."""
        add_told(parser)
        add = parser.add_argument_group("what it is given").add_argument
        add("maps", nargs="*", metavar="MAPS", help="PNG and .npy files, and directories of them")
        add("--void", type=int, metavar="LABEL", help="a number in maps that stands for no label")
        add("--indir", help=argparse.SUPPRESS)  # published: of inpaint

    def items(self, model: Any, args: argparse.Namespace) -> list[Item]:
        """Each map as often as asked; its labels are looked at."""
        require_script("scripts/semantic.py", model)
        words = [*args.maps, *([args.indir] if args.indir else [])]
        if not words:
            raise ConfigError("no maps: name files or directories after RUN")
        check_least(args, void=0)
        latent_size("size", args.size, model)
        found = []
        for path in image_files(words, EXTENSIONS):
            size = list(args.size) if args.size else _own_size(path, cells_of(model))
            found.append({"map": str(path), "map_sha256": sha256_of(path), "size": size})
        entries = told(model, args)
        for item in found:
            _labels(item, model, args.void)
        return [{**entries, **item} for item in found for _ in range(args.n)]

    def given(self, model: Any, args: argparse.Namespace, items: Sequence[Item]) -> Given:
        """The maps under the name that the model reads them by, and their size."""
        maps = np.stack([_labels(item, model, args.void) for item in items])
        batch = super().given(model, args, items).batch or {}
        keys = {part.key for part in model.conditioner.parts if kind_of(part) == "map"}
        batch |= dict.fromkeys(keys, torch.from_numpy(maps).to(model.device))
        return Given(batch, {"size": latent_size("size", items[0]["size"], model)})


def _own_size(path: Path, cells: int) -> list[int]:
    try:
        height, width = map_size(path)
    except UNREADABLE as error:
        raise ConfigError(f"{path}: cannot be read as a map: {reason(error)}") from error
    return fitting_size(path, height, width, cells)


def _labels(item: Item, model: Any, void: int | None) -> Labels:
    """The map of an item at its size, (H, W).

    Raises ConfigError for a file that has changed, is none, or has labels that the model does not
    know.
    """
    path = unchanged(item, "map")
    try:
        labels = read_map(path)
    except UNREADABLE as error:
        raise ConfigError(f"{path}: cannot be read as a map: {reason(error)}") from error
    known = labels_in_range(labels, _num_labels(model), str(path), void)
    height, width = item["size"]
    return fitted(known[..., None], height, width, "nearest")[..., 0]


def _num_labels(model: Any) -> int:
    """How many labels the model knows; ConfigError for encoders that take no labels."""
    counts: list[int] = []
    for part in model.conditioner.parts:
        if kind_of(part) == "map":
            if not hasattr(part.embedder, "num_labels"):
                found = f"{part.key} ({type(part.embedder).__name__})"
                raise ConfigError(
                    f"this model draws from {found}, which takes no labels; draw it with "
                    "`model.sample` from Python (docs/sampling.md)"
                )
            counts.append(part.embedder.num_labels)
    return min(counts)
