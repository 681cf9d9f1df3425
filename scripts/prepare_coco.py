"""Unpack COCO's archives where the data sets look for them, counted.

python scripts/prepare_coco.py train2017.zip val2017.zip annotations_trainval2017.zip \
    stuffthingmaps_trainval2017.zip --out data/coco
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ldm.cli.exits import exit_code
from ldm.preparation.coco import prepare_coco as unpack
from ldm.preparation.command import add_preparation


def prepare_coco(argv: Sequence[str]) -> None:
    """Parse the command line, unpack."""
    parser = argparse.ArgumentParser(description="COCO's images, annotations and maps of stuff.")
    sources = (
        "archives under their own names, or directories of what is in them: train2017.zip, "
        "val2017.zip, annotations_trainval2017.zip, stuffthingmaps_trainval2017.zip; those of 2014"
    )
    add_preparation(parser, sources, out=None, nargs="+")
    unpack(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(exit_code(prepare_coco))
