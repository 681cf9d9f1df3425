"""Sort ImageNet (ILSVRC2012) by synsets, from its owner's tars.

python scripts/prepare_imagenet.py ILSVRC2012_img_train.tar --out data/imagenet
python scripts/prepare_imagenet.py ILSVRC2012_img_val.tar --out data/imagenet --part val \
    --labels ILSVRC2012_devkit_t12.tar.gz
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ldm.cli.exits import exit_code
from ldm.preparation.command import add_preparation
from ldm.preparation.imagenet import COUNTS
from ldm.preparation.imagenet import prepare_imagenet as sort


def prepare_imagenet(argv: Sequence[str]) -> None:
    """Parse the command line, sort the images."""
    parser = argparse.ArgumentParser(description="ImageNet's tars as directories of synsets.")
    sources = "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, or a directory of what is in them"
    add_preparation(parser, sources, out=None)
    add = parser.add_argument
    add("--part", choices=tuple(COUNTS), default="train", help="what is in it; default: train")
    kit = "ILSVRC2012_devkit_t12.tar.gz or the directory in it"
    lines = "a .txt of lines of image and synset, or of synsets in the order of the images"
    add("--labels", metavar="FILE", help=f"synsets of the validation images: {kit}; or {lines}")
    large = "write a list without the images whose shorter side has fewer pixels, for ImageList"
    add("--drop-below", metavar="PIXELS", type=int, help=large)
    sort(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(exit_code(prepare_imagenet))
