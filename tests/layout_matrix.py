"""Kills tiny trainings under one layout and goes on under another; compares what they saw.

    python -m tests.layout_matrix --lives 12 --stage both

A layout is processes x samples in a batch, and loader processes of each; an optimizer step has the
same 16 samples under all of them. Each life begins under a drawn layout, is killed by SIGKILL soon
after a drawn step was saved, and goes on under another. Compared with an unbroken training in one
process: sample ids of every step, times, noise and every other drawn number, bit for bit, and
losses and metrics, relatively.

Exits with 1 where anything but the losses' last digits differs.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

from tests.forked import ForkServer
from tests.layouts import STEPS, Layout, Training, compared, moved

STAGES = ("first", "second")
SAMPLES = 16  # of an optimizer step
TOLERANCE = 1e-5  # of losses, relative
WORKERS = (0, 1, 3)
LATEST = 0.5  # s after a save at which a training is killed


def pairs(rng: random.Random, count: int) -> list[tuple[Layout, Layout]]:
    """Moves from layout to layout; each layout is left and taken up about as often as another."""
    layouts = [Layout(processes, micro) for processes, micro in product((1, 2, 4), (1, 2, 4))]
    drawn: list[tuple[Layout, Layout]] = []
    while len(drawn) < count:
        left, taken = rng.sample(layouts, len(layouts)), rng.sample(layouts, len(layouts))
        drawn += [(a, b) for a, b in zip(left, taken, strict=True) if a != b]
    with_workers = [
        tuple(Layout(each.processes, each.micro, rng.choice(WORKERS)) for each in pair)
        for pair in drawn[:count]
    ]
    return [(a, b) for a, b in with_workers]


def matrix(args: argparse.Namespace, directory: Path) -> tuple[list[str], bool]:
    """Lines of the table, and whether all was as it should be."""
    rng, is_right = random.Random(args.seed), True
    stages = STAGES if args.stage == "both" else (args.stage,)
    head = ("stage", "layout", "after the kill", "killed", "ids, times, noise", "worst loss")
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head))]
    begun, rows = time.monotonic(), 0
    with ForkServer() as server:
        whole = {}
        for stage in stages:
            training = Training(server, stage, directory / stage / "whole", SAMPLES)
            training.start(Layout(1, 4))
            whole[stage] = training.record()
        for number, layouts in enumerate(pairs(rng, args.lives)):
            stage = stages[number % len(stages)]
            training = Training(server, stage, directory / stage / f"{number:03}", SAMPLES)
            step = rng.randint(1, STEPS - 1)
            record = moved(training, layouts, [step], rng.uniform(0, LATEST))
            problems, worst, where = compared(whole[stage], record)
            is_right &= not problems and worst <= TOLERANCE
            equal = "; ".join(problems) if problems else "equal"
            killed = f"after step {step}" if training.kills else "too late"
            lines.append(
                f"| {stage} | {layouts[0]} | {layouts[1]} | {killed} | {equal} "
                f"| {worst:.1e} ({where}) |"
            )
            rows += 1
            spent = time.monotonic() - begun
            left = spent / rows * (args.lives - rows) / 60
            print(f"{rows}/{args.lives} lives, {left:.1f} min left\n{lines[-1]}", flush=True)
            if spent > 60 * args.minutes:
                break
    return lines, is_right


def main() -> int:
    """Train as often as the command line says, and show the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lives", type=int, default=12)
    parser.add_argument("--stage", choices=(*STAGES, "both"), default="both")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end after these")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="layouts-"))
    begun = time.monotonic()
    lines, is_right = matrix(args, directory)
    print("\n".join(lines), f"\n{(time.monotonic() - begun) / 60:.1f} min, seed {args.seed}")
    if not is_right:
        print(f"kept: {directory}")
        return 1
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
