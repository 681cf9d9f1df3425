"""Kills tiny trainings hundreds of times, and compares what they become with unbroken ones.

    python -m tests.crash_harness --kills 200 --stage both

Each life is one training through the command line, killed by SIGKILL one to four times: at a named
point of saving, or at a moment drawn from all of its time. It is started again with `-r RUN`, or
anew while it has no checkpoint, until it ends. Then its weights, averages, optimizer states and
logged losses are compared with those of a training that nothing broke, bit for bit.

Exits with 1 if any life differs or any start has a problem; their directories are kept.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.forked import ForkServer
from tests.lives import POINTS, Death, Life, Pace, Start, configuration, same_run

STAGES = ("first", "second")
MOST_DEATHS = 4  # of one life
LATEST = 5  # time that a point is reached


@dataclass
class Row:
    """What deaths of one kind came to: how often, from which steps others went on, mismatches."""

    kills: int = 0
    restarts: int = 0
    resumed: Counter[int] = field(default_factory=Counter)
    mismatches: int = 0

    def cells(self) -> list[str]:
        """The row as text."""
        resumed = ", ".join(f"{step}: {count}" for step, count in sorted(self.resumed.items()))
        return [str(self.kills), str(self.restarts), resumed, str(self.mismatches)]


class Tally:
    """All rows, by stage and kind of death."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Row] = {}
        self.said: list[str] = []

    @property
    def kills(self) -> int:
        """All of them."""
        return sum(row.kills for row in self.rows.values())

    def add(self, stage: str, starts: list[Start], problems: list[str]) -> None:
        """One life."""
        for start, following in zip(starts, [*starts[1:], None], strict=True):
            if start.death is None or not start.has_died:
                continue
            row = self.rows.setdefault((stage, start.death.kind), Row())
            row.kills += 1
            if following is not None:
                row.restarts += 1
                if following.resumed_at is not None:
                    row.resumed[following.resumed_at] += 1
            row.mismatches += bool(problems)
        self.said += problems

    def table(self) -> str:
        """As Markdown."""
        head = ("stage", "killed at", "kills", "restarts", "resumed at step: times", "mismatches")
        lines = [head, ("---",) * len(head)]
        lines += [(*key, *row.cells()) for key, row in sorted(self.rows.items())]
        whole = Row(
            self.kills,
            sum(row.restarts for row in self.rows.values()),
            sum((row.resumed for row in self.rows.values()), Counter()),
            sum(row.mismatches for row in self.rows.values()),
        )
        lines.append(("all", "", *whole.cells()))
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def deaths(rng: random.Random, fresh: float) -> Iterator[Death]:
    """Half at a moment, half at a point, each point as often as another."""
    while True:
        points = list(POINTS)
        rng.shuffle(points)
        for point in points:
            is_fresh = rng.random() < fresh
            yield Death(moment=rng.random(), is_fresh=is_fresh)
            yield Death(point, rng.randint(1, LATEST), is_fresh=is_fresh)


def harness(args: argparse.Namespace, directory: Path) -> Tally:
    """Lives, stage by stage in turn, until there have been enough kills or time is up."""
    rng, tally, begun = random.Random(args.seed), Tally(), time.monotonic()
    drawn = deaths(rng, args.fresh)
    stages = STAGES if args.stage == "both" else (args.stage,)
    pace: dict[str, Pace] = {}
    with ForkServer() as server:
        for stage in stages:
            whole = Life(
                server, configuration(stage, pictures=args.pictures), directory / stage / "whole"
            )
            (start,) = whole.live()
            if start.problems:
                raise SystemExit(f"the unbroken {stage} stage: {start.problems}")
            pace[stage] = whole.measured()
            print(f"{stage} stage, unbroken: {pace[stage]}", flush=True)
        begun_killing, number = time.monotonic(), 0
        while tally.kills < args.kills and time.monotonic() - begun < 60 * args.minutes:
            stage = stages[number % len(stages)]
            workers = int(rng.random() < args.workers)
            config = configuration(stage, workers=workers, pictures=args.pictures)
            life = Life(server, config, directory / stage / f"{number:03}", pace[stage])
            starts = life.live([next(drawn) for _ in range(rng.randint(1, MOST_DEATHS))])
            problems = checked(life, starts, directory / stage / "whole")
            tally.add(stage, starts, problems)
            if not problems:
                shutil.rmtree(life.directory)
            spent = time.monotonic() - begun_killing
            left = spent / max(tally.kills, 1) * (args.kills - tally.kills)
            print(
                f"{tally.kills}/{args.kills} kills, {len(tally.said)} problems, "
                f"{max(left, 0) / 60:.1f} min left",
                *problems,
                sep="\n  " if problems else "",
                flush=True,
            )
            number += 1
    return tally


def checked(life: Life, starts: list[Start], whole: Path) -> list[str]:
    """All that is wrong with a life, beginning with how it went."""
    problems = [problem for start in starts for problem in start.problems]
    if life.run is None:
        return [f"{life.directory}: no run has a checkpoint", *problems]
    (expected,) = whole.glob("logs/*")
    problems += same_run(life, expected)
    if problems:
        went = ", ".join(start.death.kind for start in starts if start.death and start.has_died)
        problems.insert(0, f"{life.directory}, killed at {went}:")
    return problems


def main() -> int:
    """Kill as often as the command line says, and show the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--stage", choices=(*STAGES, "both"), default="both")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end after these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", type=float, default=0.05, help="share in processes of their own")
    parser.add_argument("--pictures", action="store_true", help="draw pictures, too")
    parser.add_argument("--workers", type=float, default=0.2, help="share with a loader's process")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="crashes-"))
    begun = time.monotonic()
    tally = harness(args, directory)
    print(f"\n{tally.table()}\n\n{(time.monotonic() - begun) / 60:.1f} min, seed {args.seed}")
    if tally.said:
        print(f"kept: {directory}")
        return 1
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
