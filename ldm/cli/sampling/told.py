"""What an image-to-image script tells the model beside the image: captions, a class, nothing."""

from __future__ import annotations

import argparse
from typing import Any

from ldm.cli.sampling.entries import Item, captioned, labelled
from ldm.config import ConfigError

__all__ = ["add_told", "told"]


def add_told(parser: argparse.ArgumentParser) -> None:
    """Flags for models that are told something."""
    add = parser.add_argument_group("what it draws").add_argument
    add("--prompt", help="a caption, for a model of captions")
    add("--class", dest="label", type=int, metavar="LABEL", help="a class, for a model of classes")
    add("--n", "--n_samples", type=int, default=1, help="images for each given one")


def told(model: Any, args: argparse.Namespace) -> Item:
    """The entries that the model reads; ConfigError unless the flags give what it needs."""
    if args.prompt is not None and args.label is not None:
        raise ConfigError("--prompt and --class: a model is told one of them")
    if args.prompt is not None:
        return captioned(model, [args.prompt])[0]
    if any(part.embedder.reads == "text" for part in model.conditioner.parts):
        raise ConfigError("--prompt is needed: this model draws what captions say")
    return labelled(model, None if args.label is None else [args.label], 1, "--class")[0]
