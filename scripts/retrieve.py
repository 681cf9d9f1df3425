"""Draw with a retrieval-augmented model; --help shows how."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ldm.cli.exits import exit_code
from ldm.cli.sampling.draw import draw_task
from ldm.cli.sampling.retrieval import Retrieve


def retrieve(argv: Sequence[str]) -> None:
    """Parse the command line, draw, write."""
    draw_task(Retrieve(), argv)


if __name__ == "__main__":
    sys.exit(exit_code(retrieve))
