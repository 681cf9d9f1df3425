"""What a script tells the model beside what it is given: captions, a class, both or nothing."""

from __future__ import annotations

import argparse
from typing import Any

from ldm.cli.sampling.entries import Item, captioned, kind_of, labelled
from ldm.config import ConfigError

__all__ = ["add_told", "entries", "told"]


def add_told(parser: argparse.ArgumentParser) -> None:
    """Flags for models that are told something."""
    add = parser.add_argument_group("what it draws").add_argument
    add("--prompt", help="a caption, for a model of captions")
    add("--class", dest="label", type=int, metavar="LABEL", help="a class, for a model of classes")
    add("--n", "--n_samples", type=int, default=1, help="images for each given one")


def told(model: Any, args: argparse.Namespace) -> Item:
    """The captions and labels that the model reads; ConfigError unless the flags give these."""
    return entries(model, args.prompt, args.label)


def entries(model: Any, prompt: str | None, label: int | None, flags: str = "--") -> Item:
    """A caption and a class as the model reads them; ConfigError unless it reads just these.

    flags: what the flags that give them begin with.
    """
    is_captioned = any(kind_of(part) == "caption" for part in model.conditioner.parts)
    if is_captioned and prompt is None:
        raise ConfigError(f"{flags}prompt is needed: this model draws what captions say")
    if prompt is not None and not is_captioned:
        raise ConfigError(f"{flags}prompt {prompt!r}: this model was trained without captions")
    captions = captioned(model, [prompt])[0] if prompt is not None else {}
    return captions | labelled(model, None if label is None else [label], 1, f"{flags}class")[0]
