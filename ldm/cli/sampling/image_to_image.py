"""scripts/img2img.py: images, drawn anew from what is left of them under noise."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ldm.cli.sampling.entries import Item, require_script
from ldm.cli.sampling.inputs import image_items, images_of
from ldm.cli.sampling.task import Given, Task
from ldm.cli.sampling.told import add_told, told
from ldm.config import ConfigError
from ldm.models.diffusion.sampling import Start

__all__ = ["ImageToImage"]


class ImageToImage(Task):
    """Draws each image anew from the noise of the last `strength` of the steps."""

    name = "img2img"
    description = """Draw images anew: as much of them as `strength` says is given up.

python scripts/img2img.py logs/RUN photograph.jpg --strength 0.5 --n 4
python scripts/img2img.py logs/RUN sketches/ --prompt "a red circle" --strength 0.7"""
    pixel_flags = ("strength",)

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Images, and how much of them is given up."""
        add_told(parser)
        add = parser.add_argument_group("where it begins").add_argument
        add("images", nargs="*", metavar="IMAGES", help="image files, and directories of them")
        add("--strength", type=float, default=0.75, help="share of the steps taken, 0 to 1")
        add("--init-img", dest="init_img", help=argparse.SUPPRESS)  # published

    def items(self, model: Any, args: argparse.Namespace) -> list[Item]:
        """Each image as often as asked."""
        require_script("scripts/img2img.py", model)
        if not 0 < args.strength <= 1:
            raise ConfigError(f"--strength {args.strength}: expected more than 0, at most 1")
        words = [*args.images, *([args.init_img] if args.init_img else [])]
        if not words:
            raise ConfigError("no images: name files or directories after RUN")
        found = image_items(words, args.size, model)
        entries = told(model, args)
        return [{**entries, **item} for item in found for _ in range(args.n)]

    def given(self, model: Any, args: argparse.Namespace, items: Sequence[Item]) -> Given:
        """The images to begin from."""
        batch = super().given(model, args, items).batch
        return Given(batch, {"start": Start(images_of(items, model), args.strength)})
