"""Train variants of one configuration with several seeds, and set their last metrics side by side.

python scripts/compare_trainings.py -b BASE.yaml --variants A.yaml B.yaml --metrics val/psnr
python scripts/compare_trainings.py -b BASE.yaml DATA.yaml --variants A.yaml B.yaml --seeds 5 \
    --jobs 2 --out logs/comparison model.params.n_embed=8192

Each variant is a YAML file that is merged over the base and named by its stem. Writes table.md and
picture.png. A comparison that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from ldm.cli.comparison import Training, run_all, trainings
from ldm.cli.exits import exit_code
from ldm.config import ConfigError
from ldm.evaluation.comparison import as_markdown, values_of
from ldm.evaluation.curves import plot_spread


def compare_trainings(argv: Sequence[str]) -> None:
    """Parse the command line, train, write and print the table."""
    # apart from the rest, as a list of files or metrics before them would take them in
    overrides = [word for word in argv if re.match(r"[\w.]+=", word)]
    args, flags = _parser().parse_known_args([word for word in argv if word not in overrides])
    for name in ("seeds", "jobs"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} {getattr(args, name)}: expected 1 or more")
    seeds = range(args.seed, args.seed + args.seeds)
    out = Path(args.out)
    planned = trainings(
        args.base, args.variants, seeds=seeds, out=out, overrides=overrides, flags=flags
    )
    with tqdm(total=len(planned), unit="training") as bar:

        def on_end(training: Training) -> None:
            bar.update()
            values_of({training.variant: [training.metrics()]}, args.metrics)  # there, or an error

        results = run_all(planned, jobs=args.jobs, on_end=on_end)
    table = as_markdown(results, args.metrics)
    (out / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    if find_spec("matplotlib"):
        plot_spread(values_of(results, args.metrics), out / "picture.png")
    else:
        print("no picture.png: pip install -e '.[demo]' installs what draws it")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("-b", "--base", nargs="+", required=True, metavar="YAML", help="what all have in common")
    add("--variants", nargs="+", required=True, metavar="YAML", help="what they differ in")
    add("--metrics", nargs="+", default=["val/rec_loss"], help="columns of the table")
    add("--seeds", type=int, default=3, help="trainings of each variant")
    add("--seed", type=int, default=23, help="the first seed")
    add("--jobs", type=int, default=1, help="trainings at a time, each on one thread")
    add("--out", default="logs/comparison", metavar="DIR", help="where runs, table and picture go")
    return parser


if __name__ == "__main__":
    sys.exit(exit_code(compare_trainings))
