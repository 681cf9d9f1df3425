"""scripts/sample.py: unconditional images, or those of classes."""

from __future__ import annotations

import argparse
from typing import Any

from ldm.cli.sampling.entries import Item, labelled
from ldm.cli.sampling.task import Task

__all__ = ["Sample"]


class Sample(Task):
    """Draws `--n` images, of each class if any are given."""

    name = "sample"
    description = """Draw images with a trained model: unconditional, or of given classes.

python scripts/sample.py logs/RUN --n 16
python scripts/sample.py logs/RUN --classes 3 17 --n 8 --scale 1.5"""

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Classes, and how many of each."""
        add = parser.add_argument_group("what it draws").add_argument
        add("--n", "--n_samples", type=int, default=16, help="images; of each class, if any")
        add("--classes", type=int, nargs="+", metavar="LABEL", help="classes to draw")

    def items(self, model: Any, args: argparse.Namespace) -> list[Item]:
        """Labels, or nothing."""
        return labelled(model, args.classes, args.n)
