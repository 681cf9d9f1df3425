"""The training command under configurations and words that are wrong.

Whatever it is told, it ends with 0 or 2; what it refuses it refuses in a message that names a place
in the configuration, a flag or a file, without a traceback, in time, and without a trace outside of
its directory.

python tests/fuzz.py --minutes 10
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import math
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.errors import HypothesisException

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from ldm.cli.train import main  # noqa: E402
from ldm.log import log  # noqa: E402
from tests.safety.mutations import Config, bases, texts, words  # noqa: E402
from tests.safety.watching import watched  # noqa: E402

SECONDS = 20  # that a start may take; one that is right takes half of one
_EXAMPLES = 200  # of each seed
_MEMORY = 6 * 2**30  # bytes of addresses that the process may have

# a place in the configuration, a flag, an override, or a file
_PLACE = re.compile(
    r"\b(model|data|lightning)\b|(^|[ '`(])--?\w|override|\.yaml|no configuration|\w+\.\w+|"
    r"unknown key"
)


class LateError(BaseException):
    """The time is over; no `except Exception` stops it."""


@dataclass
class Outcome:
    """How a start ended.

    code: its exit code, None after an exception.  said: what it logged.  problem: what is wrong
    with how it ended, empty for nothing.  where: what tells one problem from another.
    """

    code: int | None
    said: list[str]
    problem: str = ""
    where: str = ""


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A directory to start in, where the files that configurations name are found."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "configs").symlink_to(ROOT / "configs")
        os.chdir(place)
        try:
            yield place
        finally:
            os.chdir(before)


def start(text: str, argv: Sequence[str], place: Path) -> Outcome:
    """Start the command with a configuration and further words, and judge how it ends."""
    path = place / "fuzzed.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    said: list[str] = []
    with _heard(said), _limited(SECONDS), watched(place) as seen, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # a run is neither trained nor tested, and where nothing is trained nothing is written
        outcome = _ended(["-b", str(path), "--no-test", "-l", str(place / "logs"), *argv], said)
    if not outcome.problem:
        outcome.problem = _objection(outcome, argv, list(seen), place)
    for left in place.iterdir():
        if left.name not in ("configs", "fuzzed.yaml"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    return outcome


def _ended(argv: list[str], said: list[str]) -> Outcome:
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return Outcome(main(argv), said)
    except SystemExit as end:
        return Outcome(
            end.code if isinstance(end.code, int) else 0 if end.code is None else 1, said
        )
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/ldm/" in frame.filename] or list(frames)
        where = f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].name}"
        told = "".join(traceback.format_exception(error)[-12:])
        return Outcome(None, said, f"{where}\n{told}", where)


def _objection(outcome: Outcome, argv: Sequence[str], seen: list[str], place: Path) -> str:
    """What is wrong with an end without an exception."""
    if outcome.code not in (0, 2):
        outcome.where = f"exit code {outcome.code}"
    elif seen:
        outcome.where = f"did {seen[0]}"
    elif (place / "ran").exists() or (place / "logs").exists():
        outcome.where = "wrote where nothing was to be written"
    elif outcome.code == 2 and not _names_a_place(outcome.said, argv):
        outcome.where = f"unplaced: {outcome.said[-1][:60] if outcome.said else 'silent'}"
    if not outcome.where:
        return ""
    return f"{outcome.where}: {'; '.join(outcome.said[-1:])[:600]} {seen[:3]}"


def _names_a_place(said: Sequence[str], argv: Sequence[str]) -> bool:
    # a word that names a file stands for itself
    names = [part for word in argv for part in (word, word.partition("=")[2]) if part]
    return bool(said) and (
        _PLACE.search(said[-1]) is not None or any(name in said[-1] for name in names)
    )


@contextlib.contextmanager
def _heard(said: list[str]) -> Iterator[None]:
    """Errors of the log, into a list; everything else is kept quiet."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    listener = Listener(logging.ERROR)
    handlers, log.handlers = log.handlers, [listener]
    try:
        yield
    finally:
        log.handlers = handlers


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def late(*_: object) -> None:
        raise LateError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Problem:
    """What went wrong once or more, with the smallest example of it and its seed."""

    text: str
    argv: list[str]
    outcome: Outcome
    number: int | None
    count: int = 0

    @property
    def length(self) -> int:
        """Of the example."""
        return len(self.text) + len(" ".join(self.argv))


@dataclass
class Tally:
    """How starts ended, and what was found: by what tells one problem from another."""

    codes: Counter[str] = field(default_factory=Counter)
    problems: dict[str, Problem] = field(default_factory=dict)
    slowest: tuple[float, str] = (0.0, "")

    def add(self, found: Problem) -> None:
        """Count a problem; its example stays where it is the smallest so far."""
        where = found.outcome.where
        known = self.problems.setdefault(where, found)
        known.count += 1
        if known is found:
            print(f"found: {where}", flush=True)
        if found.length < known.length:
            found.count = known.count
            self.problems[where] = found


def fuzz(
    place: Path,
    tally: Tally,
    examples: int,
    *,
    number: int | None = None,
    until: float = math.inf,
    only: str | None = None,
    configs: list[Config] | None = None,
) -> None:
    """Start the command with so many examples, and count in `tally` how it ended.

    number: seed; by default always the same examples are drawn.  until: time to stop at.
    only: make the example of this problem smaller; AssertionError where it was met.
    configs: what is changed; by default a configuration of each kind.
    """
    configs = configs or bases()
    phases = [Phase.generate] if only is None else [Phase.generate, Phase.shrink]

    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=number is None,
        suppress_health_check=list(HealthCheck),
        phases=phases,
        print_blob=False,
        report_multiple_bugs=False,
    )
    @given(st.data())
    def one(data: st.DataObject) -> None:
        text, argv = data.draw(texts(configs)), data.draw(words(configs))
        began = time.time()
        if began > until:
            return
        outcome = start(text, argv, place)
        tally.codes[str(outcome.code)] += 1
        tally.slowest = max(tally.slowest, (time.time() - began, f"{argv}\n{text}"))
        if outcome.problem:
            tally.add(Problem(text, argv, outcome, number))
            assert outcome.where != only

    set_hypothesis_home_dir(str(place / ".hypothesis"))
    (one if number is None else seed(number)(one))()


def _shrink(place: Path, tally: Tally, seconds: float) -> None:
    """Look for a smaller example of each problem, so long."""
    for where, problem in list(tally.problems.items()):
        until = time.time() + seconds
        # hypothesis calls what no longer fails, as the time is over, flaky
        with contextlib.suppress(AssertionError, HypothesisException, BaseExceptionGroup):
            fuzz(place, tally, _EXAMPLES, number=problem.number, until=until, only=where)


def _report(tally: Tally) -> None:
    for where, problem in sorted(tally.problems.items(), key=lambda each: -each[1].count):
        print(f"=== {problem.count} x {where} (seed {problem.number})\nwords: {problem.argv}")
        print(f"{problem.text}\n{problem.outcome.problem}\n")
    for where, problem in tally.problems.items():
        print(f"{problem.count:5} {where}")
    print(f"slowest: {tally.slowest[0]:.1f} s: {tally.slowest[1][:200]!r}")
    print(f"{len(tally.problems)} problems" if tally.problems else "clean")


def _main() -> int:
    parser = argparse.ArgumentParser(description="Start the command in ways that are wrong.")
    add = parser.add_argument
    add("--minutes", type=float, default=10)
    add("--seed", type=int, default=0, help="the first; later ones count on")
    add("--shrink", type=float, default=60, help="seconds to make an example of a problem smaller")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    tally, number = Tally(), args.seed
    until = time.time() + 60 * args.minutes
    with workplace() as place:
        while time.time() < until:
            fuzz(place, tally, _EXAMPLES, number=number, until=until)
            number += 1
            print(f"seeds {args.seed} to {number - 1}: exit codes {dict(tally.codes)}", flush=True)
        _shrink(place, tally, args.shrink)
    _report(tally)
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(_main())
