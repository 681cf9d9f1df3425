"""Export a database of LSUN as image files, and write the lists of its splits.

python scripts/prepare_lsun.py church_outdoor_train_lmdb --category church_outdoor
python scripts/prepare_lsun.py bedroom_val_lmdb --category bedroom --part val
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ldm.cli.exits import exit_code
from ldm.preparation.command import add_preparation
from ldm.preparation.lsun import CATEGORIES, PARTS
from ldm.preparation.lsun import prepare_lsun as export_and_list


def prepare_lsun(argv: Sequence[str]) -> None:
    """Parse the command line, export, write the lists."""
    parser = argparse.ArgumentParser(description="LSUN's databases as image files and lists.")
    sources = "an unzipped database, such as church_outdoor_train_lmdb"
    add_preparation(parser, sources, out="data/lsun/churches, bedrooms or cats")
    parser.set_defaults(out=None)  # as the category says
    add = parser.add_argument
    add("--category", required=True, choices=CATEGORIES, help="whose images these are")
    add("--part", choices=PARTS, default="train", help="the owner's part; default: train")
    add("--lists", metavar="DIR", help="published lists of both splits; default: by hash")
    export_and_list(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(exit_code(prepare_lsun))
