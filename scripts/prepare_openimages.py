"""Write the boxes of Open Images in COCO's format, one file for each part.

python scripts/prepare_openimages.py train-annotations-bbox.csv --part train --images train/ \
    --classes class-descriptions-boxable.csv --out data/openimages
python scripts/prepare_openimages.py validation-annotations-bbox.csv --part validation \
    --images validation.tar.gz --classes class-descriptions-boxable.csv --out data/openimages
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ldm.cli.exits import exit_code
from ldm.preparation.command import add_preparation
from ldm.preparation.openimages import COUNTS
from ldm.preparation.openimages import prepare_openimages as convert


def prepare_openimages(argv: Sequence[str]) -> None:
    """Parse the command line, unpack the images where they are archives, write the boxes."""
    parser = argparse.ArgumentParser(description="Boxes of Open Images in COCO's format.")
    add_preparation(parser, "the table of boxes of a part, a .csv", out=None)
    add = parser.add_argument
    add("--part", choices=tuple(COUNTS), default="train", help="whose boxes; default: train")
    images = "a directory, which stays where it is, or archives, which are unpacked below --out"
    add("--images", metavar="PATH", nargs="+", required=True, help=images)
    classes = "class-descriptions-boxable.csv; labels count its lines"
    add("--classes", metavar="FILE", required=True, help=classes)
    groups = "keep boxes around more than five things of a class that touch"
    add("--keep-groups", action="store_true", help=groups)
    add("--keep-depictions", action="store_true", help="keep boxes around pictures of things")
    convert(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(exit_code(prepare_openimages))
