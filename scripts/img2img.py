"""Draw images anew from what noise leaves of them; --help shows how."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ldm.cli.exits import exit_code
from ldm.cli.sampling.draw import draw_task
from ldm.cli.sampling.image_to_image import ImageToImage


def img2img(argv: Sequence[str]) -> None:
    """Parse the command line, draw, write."""
    draw_task(ImageToImage(), argv)


if __name__ == "__main__":
    sys.exit(exit_code(img2img))
