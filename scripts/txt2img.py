"""Draw what captions say with a trained text-to-image model.

python scripts/txt2img.py logs/RUN --prompt "a small red circle at the top on white" --n 4
python scripts/txt2img.py logs/RUN --from-file captions.txt --steps 30 --scale 3
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ldm.cli.exits import exit_code
from ldm.cli.sampling import (
    caption_entries,
    draw_and_write,
    load_model,
    read_captions,
    sampling_parser,
)


def txt2img(argv: Sequence[str]) -> None:
    """Parse the command line, draw, write."""
    parser = sampling_parser("Draw what captions say.")
    parser.add_argument("--prompt", action="append", default=[], help="a caption; may be repeated")
    parser.add_argument("--from-file", metavar="TXT", help="captions, one per line")
    parser.add_argument("--n", type=int, default=4, help="images of each caption")
    parser.set_defaults(scale=3.0)
    args = parser.parse_args(argv)
    captions = [text for text in read_captions(args.prompt, args.from_file) for _ in range(args.n)]
    model = load_model(args)
    entries = caption_entries(model, captions)
    draw_and_write(model, args, range(args.seed, args.seed + len(captions)), entries)


if __name__ == "__main__":
    sys.exit(exit_code(txt2img))
