"""Write the images of Places365 as directories of classes, and lists for inpainting.

python scripts/prepare_places.py train_large_places365standard.tar
python scripts/prepare_places.py val_large.tar --part val
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ldm.cli.exits import exit_code
from ldm.preparation.command import add_preparation
from ldm.preparation.places import COUNTS
from ldm.preparation.places import prepare_places as write_and_list


def prepare_places(argv: Sequence[str]) -> None:
    """Parse the command line, write the images and the lists."""
    parser = argparse.ArgumentParser(description="Places365 as image files and lists.")
    sources = "an archive of Places365, such as val_large.tar, or a directory of what was in it"
    add_preparation(parser, sources, out="data/places")
    add = parser.add_argument
    add("--part", choices=COUNTS, default="train", help="the owner's part; default: train")
    labels = "places365_val.txt and categories_places365.txt, for classes of --part val"
    add("--labels", metavar="DIR", help=labels)
    lists = "inpainting_val.txt and inpainting_test.txt; default: by hash"
    add("--lists", metavar="DIR", help=lists)
    write_and_list(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(exit_code(prepare_places))
