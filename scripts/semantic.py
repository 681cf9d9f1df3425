"""Draw images of maps of labels; --help shows how."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ldm.cli.exits import exit_code
from ldm.cli.sampling.draw import draw_task
from ldm.cli.sampling.semantic import Semantic


def semantic(argv: Sequence[str]) -> None:
    """Parse the command line, draw, write."""
    draw_task(Semantic(), argv)


if __name__ == "__main__":
    sys.exit(exit_code(semantic))
