"""Draw images with a trained model: unconditional, or of given classes.

python scripts/sample.py logs/RUN --n 16
python scripts/sample.py logs/RUN --classes 3 17 --n 8 --scale 1.5
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ldm.cli.exits import exit_code
from ldm.cli.sampling import draw_and_write, label_entries, load_model, sampling_parser


def sample(argv: Sequence[str]) -> None:
    """Parse the command line, draw, write."""
    parser = sampling_parser("Draw images with a trained model.")
    parser.add_argument("--n", type=int, default=16, help="images; of each class, if any are given")
    parser.add_argument("--classes", type=int, nargs="+", metavar="LABEL", help="classes to draw")
    args = parser.parse_args(argv)
    model = load_model(args)
    entries = label_entries(model, args.classes, args.n)
    count = args.n * len(args.classes or [None])
    draw_and_write(model, args, range(args.seed, args.seed + count), entries)


if __name__ == "__main__":
    sys.exit(exit_code(sample))
