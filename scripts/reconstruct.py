"""Show what a first stage keeps of your images, and measure what it loses.

python scripts/reconstruct.py logs/FIRST photographs/
python scripts/reconstruct.py model.ckpt --config model.yaml a.jpg b.png --size 512
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ldm.cli.exits import exit_code
from ldm.cli.first_stages import add_judge, add_running
from ldm.cli.image_format import add_image_format
from ldm.cli.reconstruction import reconstruct_and_write


def reconstruct(argv: Sequence[str]) -> None:
    """Parse the command line, reconstruct, measure, write."""
    parser = argparse.ArgumentParser(description="What a first stage keeps of your images.")
    add = parser.add_argument
    add("run", metavar="RUN", help="run directory, or checkpoint, of a first stage or with one")
    add("images", nargs="+", metavar="IMAGES", help="image files, and directories of them")
    add("--config", metavar="YAML", help="configuration of a checkpoint outside a run")
    add("--out", metavar="DIR", default="outputs/reconstruct", help="where all is written")
    add("--size", type=int, help="the square in the centre at this side; default: as it is")
    weights = "averaged, or as trained last; default: averaged where the run kept some"
    add("--weights", choices=("ema", "raw"), help=weights)
    add("--sample", action="store_true", help="a sample of the posterior, not its mode (KL)")
    add("--seed", type=int, default=0, help="of the samples")
    add_image_format(parser)
    add_judge(parser)
    add_running(parser)
    reconstruct_and_write(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(exit_code(reconstruct))
