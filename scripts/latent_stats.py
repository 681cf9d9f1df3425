"""Measure the latents of a first stage, for the scale that a second stage divides them by.

python scripts/latent_stats.py logs/FIRST --data photographs/
python scripts/latent_stats.py logs/FIRST --data configs/ldm-kl-f8.yaml --n 50000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ldm.cli.exits import exit_code
from ldm.cli.first_stages import add_running
from ldm.cli.image_format import add_image_format
from ldm.cli.latents import STATISTICS_FILE, measure_latents


def latent_stats(argv: Sequence[str]) -> None:
    """Parse the command line, encode, write the statistics."""
    parser = argparse.ArgumentParser(description="Moments of a first stage's unscaled latents.")
    add = parser.add_argument
    add("run", metavar="RUN", help="run directory, or checkpoint, of a first stage")
    add("--config", metavar="YAML", help="configuration of a checkpoint outside a run")
    add("--data", required=True, help="directory of images, or a configuration with a train set")
    add("--n", type=int, default=10_000, help="images, drawn from all without replacement")
    add("--size", type=int, help="side of images of a directory; default: as trained")
    add("--batch-size", type=int, default=16, help="images encoded together")
    add("--num-workers", type=int, default=0, help="processes that read images")
    add("--seed", type=int, default=0, help="of the choice of images")
    where = f"default: {STATISTICS_FILE} in the run, or beside the checkpoint"
    add("--out", metavar="FILE", help=where)
    add_image_format(parser)
    add_running(parser)
    measure_latents(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(exit_code(latent_stats))
