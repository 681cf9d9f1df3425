"""Pack downloaded images and captions of LAION into tar shards, filtered; nothing is fetched.

python scripts/prepare_laion.py laion-files/ --out data/laion --min-side 256
python scripts/prepare_laion.py laion-files/ --metadata part-00000.parquet --out data/laion \
    --min-similarity 0.3 --max-unsafe 0.1 --max-watermark 0.8
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ldm.cli.exits import exit_code
from ldm.preparation.command import add_preparation
from ldm.preparation.laion import prepare_laion as pack


def prepare_laion(argv: Sequence[str]) -> None:
    """Parse the command line, write the shards."""
    parser = argparse.ArgumentParser(description="Downloaded images with captions as tar shards.")
    sources = "the directory of the downloads: 00000/000000001.jpg, .txt and .json, ..."
    add_preparation(parser, sources, out=None)
    add = parser.add_argument
    tables = "tables, or directories of them; default: those in SOURCE, else the .json files"
    add("--metadata", metavar="PARQUET", nargs="+", help=tables)
    add("--per-shard", metavar="N", type=int, default=10_000, help="rows to a shard; default 10000")
    add("--min-side", metavar="PIXELS", type=int, help="leave out images with a shorter side")
    add("--max-aspect", metavar="R", type=float, help="leave out images longer than R times wide")
    add("--min-similarity", metavar="X", type=float, help="of caption and image, by the table")
    add("--max-unsafe", metavar="P", type=float, help="leave out a greater `punsafe`")
    add("--max-watermark", metavar="P", type=float, help="leave out a greater `pwatermark`")
    pack(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(exit_code(prepare_laion))
