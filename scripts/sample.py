"""Draw images with a trained model, unconditional or of given classes; --help shows how."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ldm.cli.exits import exit_code
from ldm.cli.sampling.classes import Sample
from ldm.cli.sampling.draw import draw_task


def sample(argv: Sequence[str]) -> None:
    """Parse the command line, draw, write."""
    draw_task(Sample(), argv)


if __name__ == "__main__":
    sys.exit(exit_code(sample))
