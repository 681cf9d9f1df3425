"""What the scripts that draw from noise alone have in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ldm.cli.sampling.between import add_between, noise_between
from ldm.cli.sampling.clip import CLIP, CLIP_FLAGS, add_clip, clip_of
from ldm.cli.sampling.entries import Item, kind_of
from ldm.cli.sampling.task import Given, Task
from ldm.config import ConfigError

__all__ = ["FromNoise"]


class FromNoise(Task):
    """Draws from the noise of seeds, or between two of them, and may be guided by CLIP."""

    pixel_flags: tuple[str, ...] = CLIP_FLAGS
    clip: CLIP | None = None

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Between which seeds, and what CLIP is to see."""
        add_between(parser)
        add_clip(parser)

    def prepare(self, model: Any, args: argparse.Namespace) -> None:
        """Load CLIP; ConfigError when nothing says what it is to see."""
        is_captioned = any(kind_of(part) == "caption" for part in model.conditioner.parts)
        if args.clip is not None and args.clip_prompt is None and not is_captioned:
            raise ConfigError("--clip-prompt is needed: what CLIP is to see")
        self.clip = clip_of(args, model)

    def given(self, model: Any, args: argparse.Namespace, items: Sequence[Item]) -> Given:
        """What the model reads, the noise, and the gradient of CLIP."""
        given = super().given(model, args, items)
        given = replace(given, options={**given.options, **noise_between(model, args, items)})
        if self.clip is None:
            return given
        texts = [
            _caption(model, item) if args.clip_prompt is None else args.clip_prompt
            for item in items
        ]
        gradient = self.clip.gradient(
            model, texts, scale=args.clip_scale, through=args.clip_through
        )
        return replace(given, gradient=gradient)


def _caption(model: Any, item: Item) -> str:
    parts = model.conditioner.parts
    return str(next(item[part.key] for part in parts if kind_of(part) == "caption"))
