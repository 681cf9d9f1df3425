"""Write the images of FFHQ where the data sets look for them, and the lists of its splits.

python scripts/prepare_ffhq.py images1024x1024.zip
python scripts/prepare_ffhq.py images1024x1024.zip --size 256 --lists published/
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ldm.cli.exits import exit_code
from ldm.preparation.faces import FFHQ, add_faces, prepare_faces


def prepare_ffhq(argv: Sequence[str]) -> None:
    """Parse the command line, write the images and the lists."""
    parser = argparse.ArgumentParser(description="FFHQ as image files and lists.")
    add_faces(parser, FFHQ)
    prepare_faces(parser.parse_args(argv), FFHQ)


if __name__ == "__main__":
    sys.exit(exit_code(prepare_ffhq))
