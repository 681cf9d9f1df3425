"""scripts/img2img.py: images, drawn anew from what is left of them under noise."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ldm.cli.sampling.entries import Item, batch_of, require_script
from ldm.cli.sampling.guiding import Guidance
from ldm.cli.sampling.inputs import image_items, images_of
from ldm.cli.sampling.published import add_iterations
from ldm.cli.sampling.sizes import latent_size
from ldm.cli.sampling.task import Given, Task
from ldm.cli.sampling.told import add_told, entries, told
from ldm.config import ConfigError
from ldm.models.diffusion.sampling import Inverted, Start

__all__ = ["ImageToImage"]


class ImageToImage(Task):
    """Draws each image anew from the noise of the last `strength` of the steps.

    With `--invert` from the image's own noise, of which that share is replaced.
    """

    name = "img2img"
    description = """Draw images anew: as much of them as `strength` says is given up.

python scripts/img2img.py logs/RUN photograph.jpg --strength 0.5 --n 4
python scripts/img2img.py logs/RUN sketches/ --prompt "a red circle" --strength 0.7
python scripts/img2img.py logs/RUN photograph.jpg --invert --strength 0.2 --n 4"""
    pixel_flags = ("strength", "invert")

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Images, and how much of them is given up."""
        add_told(parser)
        add = parser.add_argument_group("where it begins").add_argument
        add("images", nargs="*", metavar="IMAGES", help="image files, and directories of them")
        add("--strength", type=float, default=0.75, help="share that is given up, 0 to 1")
        # None where it is not: what jobs of before there was this flag say too
        told = "give up a share of the image's own noise"
        add("--invert", action="store_true", default=None, help=told)
        add("--source-prompt", metavar="TEXT", help="what it shows, to invert; default: --prompt")
        add("--source-class", type=int, metavar="LABEL", help="the same; default: --class")
        add("--init-img", dest="init_img", help=argparse.SUPPRESS)  # published
        add_iterations(parser)

    def items(self, model: Any, args: argparse.Namespace) -> list[Item]:
        """Each image as often as asked."""
        require_script("scripts/img2img.py", model)
        _require_fitting(args, model)
        words = [*args.images, *([args.init_img] if args.init_img else [])]
        if not words:
            raise ConfigError("no images: name files or directories after RUN")
        found = image_items(words, args.size, model)
        own = {**told(model, args), **_source(model, args)}
        return [{**own, **item} for item in found for _ in range(args.n)]

    def given(self, model: Any, args: argparse.Namespace, items: Sequence[Item]) -> Given:
        """The images to begin from."""
        batch = super().given(model, args, items).batch
        images = images_of(items, model)
        if not args.invert:
            return Given(batch, {"start": Start(images, args.strength)})
        source = [item["source"] for item in items if "source" in item]
        tile = latent_size("tile", args.tile, model)
        start = Inverted(
            images,
            args.strength,
            batch=batch_of(model, source) if source else None,
            guide=None if tile is None else Guidance(model.schedule, tile=tile),
        )
        return Given(batch, {"start": start})


def _require_fitting(args: argparse.Namespace, model: Any) -> None:
    """Raise ConfigError for a share out of range, and flags that go with `--invert` alone."""
    if args.invert:
        if not 0 <= args.strength <= 1:
            raise ConfigError(f"--strength {args.strength}: expected 0 to 1")
        if args.steps < 2 and model.schedule.ends_in_pure_noise:
            raise ConfigError(f"--steps {args.steps}: expected 2 or more, to invert to pure noise")
        return
    if not 0 < args.strength <= 1:
        raise ConfigError(f"--strength {args.strength}: expected more than 0, at most 1")
    for name in ("source_prompt", "source_class"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')}: says what --invert begins with")


def _source(model: Any, args: argparse.Namespace) -> Item:
    """What the images show, as the model reads it; nothing where that is what is drawn."""
    if args.source_prompt is None and args.source_class is None:
        return {}
    return {"source": entries(model, args.source_prompt, args.source_class, "--source-")}
