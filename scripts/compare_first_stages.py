"""Send your images through several first stages: one table and one picture.

python scripts/compare_first_stages.py logs/F4 logs/F8 --images photographs/ --size 256
python scripts/compare_first_stages.py a.ckpt=a.yaml logs/F8 --images DIR --unet second-stage.yaml
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from ldm.benchmark.first_stages import costs
from ldm.cli.exits import exit_code
from ldm.cli.first_stages import add_judge, add_running
from ldm.cli.image_format import add_image_format
from ldm.cli.side_by_side import compare_and_write


def compare_first_stages(argv: Sequence[str]) -> None:
    """Parse the command line, run every first stage, write table, picture and record."""
    parser = argparse.ArgumentParser(description="Several first stages on your images.")
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="run directory, checkpoint, or CHECKPOINT=YAML")
    add("--images", required=True, metavar="DIR", help="directory of images")
    add("--unet", metavar="YAML", help="diffusion model whose network's work is counted")
    add("--out", metavar="DIR", default="outputs/compare", help="where all is written")
    add("--size", type=int, help="the square in the centre at this side; default: as it is")
    weights = "averaged, or as trained last; default: averaged where the run kept some"
    add("--weights", choices=("ema", "raw"), help=weights)
    add("--repeats", type=int, default=7, help="timed calls, of which the median counts")
    add_image_format(parser)
    add_judge(parser)
    add_running(parser)
    args = parser.parse_args(argv)
    of_one = partial(costs, precision=args.precision, repeats=args.repeats, unet=args.unet)
    print(compare_and_write(args, of_one), end="")


if __name__ == "__main__":
    sys.exit(exit_code(compare_first_stages))
