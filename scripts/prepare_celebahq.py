"""Write the images of CelebA-HQ where the data sets look for them, and the lists of its splits.

python scripts/prepare_celebahq.py CelebAMask-HQ.zip
python scripts/prepare_celebahq.py CelebAMask-HQ.zip --size 256 --lists published/
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ldm.cli.exits import exit_code
from ldm.preparation.faces import CELEBA_HQ, add_faces, prepare_faces


def prepare_celebahq(argv: Sequence[str]) -> None:
    """Parse the command line, write the images and the lists."""
    parser = argparse.ArgumentParser(description="CelebA-HQ as image files and lists.")
    add_faces(parser, CELEBA_HQ)
    prepare_faces(parser.parse_args(argv), CELEBA_HQ)


if __name__ == "__main__":
    sys.exit(exit_code(prepare_celebahq))
