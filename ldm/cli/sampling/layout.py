"""scripts/layout2img.py: pictures of things at given places."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ldm.cli.sampling.entries import Item, kind_of, require_script
from ldm.cli.sampling.layout_files import boxes_of, layout_items, trained_names
from ldm.cli.sampling.sizes import latent_size, pixels_per_cell
from ldm.cli.sampling.task import Given, Task
from ldm.cli.sampling.told import add_told, told
from ldm.conditioning.boxes import BoxMap
from ldm.conditioning.conditioner import Part
from ldm.conditioning.layout import LayoutEmbedder, LayoutTokens
from ldm.conditioning.text import TransformerEmbedder
from ldm.config import ConfigError
from ldm.data.transforms import Framing

__all__ = ["LayoutToImage"]


class LayoutToImage(Task):
    """Draws layouts, `--n` images of each."""

    name = "layout2img"
    description = """Draw things at given places with a trained layout-to-image model.

python scripts/layout2img.py logs/RUN --boxes "3 0.1 0.1 0.3 0.4; 7 0.5 0.5 0.3 0.3" --n 4
python scripts/layout2img.py logs/RUN layout.json more/ --scale 2
python scripts/layout2img.py logs/RUN instances_val2017.json

A box is left, top, width and height, as fractions of the picture. A JSON file holds a list of
objects, {"label": 3, "box": [0.1, 0.1, 0.3, 0.4]}, which is one layout, or the images, annotations
and categories of COCO's format, with boxes in pixels: a layout for each image. A label may be the
name of a class where the data that the model was trained on can be asked for its names."""

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Layouts, and how many of each."""
        add_told(parser)
        add = parser.add_argument_group("what it is given").add_argument
        add("layouts", nargs="*", metavar="LAYOUTS", help="JSON files, and directories of them")
        add("--boxes", action="append", default=[], help="a layout in words; may be repeated")

    def items(self, model: Any, args: argparse.Namespace) -> list[Item]:
        """Layouts of the command line, then those of files, each as often as asked."""
        require_script("scripts/layout2img.py", model)
        known = [_tokens(part) or part.embedder for part in _parts(model)]
        counts = [getattr(each, "num_classes", None) for each in known]
        num_classes = min((count for count in counts if count is not None), default=None)
        if not args.boxes and not args.layouts:
            raise ConfigError(
                'no layouts: give --boxes "LABEL LEFT TOP WIDTH HEIGHT" or JSON files'
            )
        names = trained_names(args.run, args.config)
        found = [{"layout": boxes_of(text, names, num_classes)} for text in args.boxes]
        _require_painted(model, args.size)
        framing = Framing.of(args.size or model.image_size)
        found += layout_items(args.layouts, names, num_classes, framing)
        if not found:
            raise ConfigError(f"{' '.join(args.layouts)}: there are no layouts")
        entries = told(model, args)
        return [{**entries, **item} for item in found for _ in range(args.n)]

    def given(self, model: Any, args: argparse.Namespace, items: Sequence[Item]) -> Given:
        """The layouts, or their tokens for a model that reads these."""
        given = super().given(model, args, items)
        rows = [item["layout"] for item in items]
        # float32, as items of data are: a box on the border of two cells falls to the side it did
        # in training
        as_data = [torch.tensor(each, dtype=torch.float32) for each in rows]
        exact = [torch.tensor(each, dtype=torch.float64) for each in rows]
        entries: dict[str, Any] = {}
        for part in _parts(model):
            tokens = None if isinstance(part.embedder, LayoutEmbedder) else _tokens(part)
            entries[part.key] = as_data if tokens is None else tokens(exact).to(model.device)
        return replace(given, batch={**(given.batch or {}), **entries})


def _parts(model: Any) -> list[Part]:
    """The parts that read layouts."""
    return [part for part in model.conditioner.parts if kind_of(part) == "layout"]


def _require_painted(model: Any, size: Sequence[int] | None) -> None:
    """Raise ConfigError for pixels (H, W) that boxes are not painted over, or no model takes."""
    cells, factor = latent_size("size", size, model), pixels_per_cell(model)
    for embedder in (part.embedder for part in _parts(model)):
        if cells is None or not isinstance(embedder, BoxMap):
            continue
        if cells != (painted := (embedder.height, embedder.width)):
            height, width = (side * factor for side in painted)
            raise ConfigError(
                f"--size {' '.join(map(str, size or ()))}: BoxMap paints boxes over {height} x "
                f"{width} pixels; expected --size {height} {width}"
            )


def _tokens(part: Part) -> LayoutTokens | None:
    """How a part's layouts become tokens, the published way where they are given as tokens.

    None for an encoder of another kind, which is given layouts.
    Raises ConfigError for one whose tokens are not those of layouts.
    """
    embedder = part.embedder
    if isinstance(embedder, LayoutEmbedder):
        return embedder.tokens
    if not isinstance(embedder, TransformerEmbedder):
        return None
    transformer = embedder.transformer
    try:
        return LayoutTokens.published(transformer.token_emb.num_embeddings, transformer.max_seq_len)
    except ValueError as error:
        raise ConfigError(
            f"this model draws from {part.key}, which is no layout: {error}"
        ) from error
