"""Find the neighbours of images for a retrieval-augmented model: an index of CLIP's embeddings.

python scripts/build_index.py configs/tasks/retrieval.yaml --clip DIR --out index.safetensors
python scripts/build_index.py logs/RUN --clip DIR --database photographs/ --out index.safetensors
python scripts/build_index.py photographs/ --clip DIR --out index.safetensors
python scripts/build_index.py CONFIG.yaml --clip DIR --out index.safetensors \
  data.params.train.params.source.params.root=photographs/

Every split of the configuration gets the K nearest images of the database, by the cosine of their
embeddings, compared one by one. An item is not its own neighbour where the database has it, by its
name. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ldm.cli.exits import exit_code
from ldm.cli.first_stages import add_running
from ldm.cli.indexing import build_index as build


def build_index(argv: Sequence[str]) -> None:
    """Parse the command line, embed, compare, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", metavar="DATA", help="configuration or run, or a directory of images")
    add("overrides", metavar="KEY=VALUE", nargs="*", help="of the configuration")
    add("--clip", required=True, metavar="DIR", help="a CLIP in transformers' format")
    add("--database", metavar="DATA", help="where neighbours come from; default: the training set")
    add("--k", type=int, default=20, help="neighbours of each image")
    add("--out", required=True, metavar="FILE", help="the index, a safetensors file")
    add("--batch-size", type=int, default=64, help="images embedded together")
    add("--num-workers", type=int, default=0, help="processes that read images")
    add_running(parser)
    build(parser.parse_intermixed_args(list(argv)))


if __name__ == "__main__":
    sys.exit(exit_code(build_index))
