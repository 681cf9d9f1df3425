"""scripts/txt2img.py: what captions say."""

from __future__ import annotations

import argparse
from typing import Any

from ldm.cli.sampling.between import going_between
from ldm.cli.sampling.entries import Item, captioned, read_captions, require_script
from ldm.cli.sampling.from_noise import FromNoise
from ldm.cli.sampling.published import add_iterations

__all__ = ["TextToImage"]


class TextToImage(FromNoise):
    """Draws captions, `--n` images of each."""

    name = "txt2img"
    description = """Draw what captions say with a trained text-to-image model.

python scripts/txt2img.py logs/RUN --prompt "a small red circle at the top on white" --n 4
python scripts/txt2img.py logs/RUN --from-file captions.txt --steps 30 --scale 3
python scripts/txt2img.py logs/RUN --prompt "a red circle" --between 3 17 --n 8"""

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Captions, and how many of each."""
        add = parser.add_argument_group("what it draws").add_argument
        add("--prompt", action="append", default=[], help="a caption; may be repeated")
        add("--from-file", metavar="TXT", help="captions, one per line")
        add("--n", "--n_samples", type=int, default=4, help="images of each caption")
        add_iterations(parser)
        parser.set_defaults(scale=3.0)
        super().add_flags(parser)

    def items(self, model: Any, args: argparse.Namespace) -> list[Item]:
        """Captions of the command line, then those of the file."""
        require_script("scripts/txt2img.py", model)
        captions = read_captions(args.prompt, args.from_file)
        items = captioned(model, [text for text in captions for _ in range(args.n)])
        return going_between(args, items)
