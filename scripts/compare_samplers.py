"""Draw the same images with several samplers and step counts: tables and a plot of their quality.

python scripts/compare_samplers.py logs/RUN --samplers ddim dpmpp-2m unipc --evaluations 8 16 32
python scripts/compare_samplers.py logs/RUN --n 256 --scale 1.5       # all of them

Conditions are those of the run's validation data. Two figures say how good the images are: their
distance from the solution of the probability-flow ODE, and, for models of drawn scenes, how many
show what their caption says. Writes table.md and picture.png. What is there is not drawn again, so
a comparison that was stopped goes on, and two processes may share one by drawing other samplers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ldm.cli.exits import exit_code
from ldm.cli.first_stages import add_running
from ldm.cli.sampler_comparison import compare_samplers_of


def compare_samplers(argv: Sequence[str]) -> None:
    """Parse the command line, draw, write and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="run directory, or a checkpoint of one")
    add("--config", metavar="YAML", help="configuration of a checkpoint outside a run")
    add("--weights", choices=("ema", "raw"), default="ema", help="averaged, or as trained last")
    add("--samplers", nargs="+", metavar="NAME", help="default: all that the model can do")
    add("--evaluations", nargs="+", type=int, default=[4, 8, 12, 20, 50], metavar="N")
    add("--n", type=int, default=64, help="images of each")
    add("--seed", type=int, default=0, help="of the first image")
    add("--scale", type=float, default=1.0, help="of classifier-free guidance; 1 is none")
    add("--batch-size", type=int, default=64, help="images drawn together")
    add("--out", metavar="DIR", default="outputs/samplers", help="where all is written")
    add_running(parser)
    print(compare_samplers_of(parser.parse_args(argv)), end="")


if __name__ == "__main__":
    sys.exit(exit_code(compare_samplers))
