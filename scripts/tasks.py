"""Every task of the paper on drawn scenes: train a small twin of each, draw, measure, compare.

python scripts/tasks.py                          # all of them, an hour on two CPU cores
python scripts/tasks.py --tasks layout semantic  # some of them

The first stage is trained once, for all that diffuse latents. Each task leaves report.json and
sheet.png in logs/tasks/TASK, and what is there is not done again, so that this can be stopped at
any time; delete a directory to have it done anew. Prints the table of docs/tasks.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ldm.cli.exits import exit_code
from ldm.cli.scene_tasks import CONFIGS, TASKS, task_table, train_task
from ldm.cli.stages import add_training, train_stage
from ldm.config import ConfigError


def tasks(argv: Sequence[str]) -> None:
    """Train what is missing, judge it, and print the table."""
    args = _parse(argv)
    torch.set_num_threads(1)  # beside the other process of a training, and for networks this small
    reports = {name: train_task(name, lambda: _first_stage(args), args) for name in args.tasks}
    table = task_table(reports)
    (Path(args.logdir) / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_training(parser, "logs/tasks")
    add = parser.add_argument
    add("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS), help="default: all")
    add("--n", type=int, default=256, help="held-out scenes to draw and measure, of each task")
    args = parser.parse_args(argv)
    if not CONFIGS.is_dir():
        raise ConfigError(f"there is no {CONFIGS} here: start this from the root of the project")
    if args.n < 2:
        raise ConfigError(f"--n {args.n}: expected 2 or more")
    return args


def _first_stage(args: argparse.Namespace) -> Path:
    """The run of the first stage, trained if there is none that was trained to its end."""
    found = sorted(Path(args.logdir).glob("*_autoencoder/trained"))
    if found:
        return found[-1].parent
    run = train_stage(CONFIGS / "autoencoder.yaml", args)
    (run / "trained").touch()
    return run


if __name__ == "__main__":
    sys.exit(exit_code(tasks))
