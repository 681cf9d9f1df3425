"""Trainings that are killed and started again until they end, beside one that nothing broke."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ldm.io.manifest import newest_valid
from tests.cli.runs import first_stage, second_stage, write
from tests.forked import ENVIRONMENT, ROOT, Child, ForkServer, Order, fresh, group
from tests.models.first_stages import EVERY_RULE

STEPS = 6  # optimizer steps, 2 to an epoch: a save is followed by a validation
SAVED_EVERY = 2
POINTS = (
    "begin",
    "middle",
    "written",
    "synced",
    "verified",
    "renamed",
    "manifest",
    "last",
    "pruned",
)
LIMIT = 300  # s that a start may take, many times what it does
# counts and paths of Lightning's, and notes for people
_OF_ITS_OWN = ("loops", "callbacks", "config", "environment")
_NUMBERED = re.compile(r"(resume-\d{9})-\d+")
WORKERS_END = 30  # s; a loader's process looks every 5 s whether the training still is


def configuration(stage: str, *, workers: int = 0, pictures: bool = False) -> dict[str, Any]:
    """A tiny training with all that has a state: two batches to a step, a schedule of rates.

    The first stage plays its game from step 2 on, with every rule of it; the second one attends to
    classes that are dropped now and then. Both drop out and are averaged.
    """
    config = {"first": first_stage, "second": second_stage}[stage]()
    params = config["model"]["params"]
    warm_up = {
        "warm_up_steps": [2 * STEPS],  # the rate differs in every step
        "cycle_lengths": [100],
        "f_start": [0.1],
        "f_max": [1.0],
        "f_min": [1.0],
    }
    target = "ldm.lr_scheduler.LambdaLinearScheduler"
    params["scheduler_config"] = {"target": target, "params": warm_up}
    params["use_ema"] = True
    if stage == "first":
        params["lossconfig"]["params"] |= EVERY_RULE
    config["data"]["params"] |= {"batch_size": 2, "num_workers": workers}
    config["data"]["params"]["train"]["params"]["length"] = 9
    lightning = config["lightning"]
    lightning["trainer"] |= {"accumulate_grad_batches": 2, "max_steps": STEPS}
    lightning["modelcheckpoint"] = {"params": {"every_n_train_steps": SAVED_EVERY, "save_top_k": 1}}
    if not pictures:
        lightning["callbacks"]["image_logger"] = None
    return config


def losses(run: Path) -> dict[int, dict[str, str]]:
    """What training and validation logged, as text, by step; of several starts the last counts."""
    found: dict[int, dict[str, str]] = {}
    for path in sorted(run.glob("metrics/*/metrics.csv"), key=lambda path: path.stat().st_ctime):
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                step = int(row.pop("step"))
                found.setdefault(step, {}).update({k: v for k, v in row.items() if v})
    return {
        step: {k: v for k, v in values.items() if k.startswith(("train/", "val", "lr-"))}
        for step, values in found.items()
    }


def differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """Where two nested values are not the same to the last bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if not torch.equal(one, other):
            yield path
    elif isinstance(one, dict) and isinstance(other, dict):
        yield from (f"{path}.{key}: only in one" for key in one.keys() ^ other.keys())
        for key in one.keys() & other.keys():
            yield from differences(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            yield f"{path}: {len(one)} and {len(other)}"
        for index, pair in enumerate(zip(one, other, strict=False)):
            yield from differences(*pair, f"{path}.{index}")
    elif one != other:
        yield f"{path}: {one!r} and {other!r}"


def read(path: Path) -> dict[str, Any]:
    """A checkpoint."""
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


@dataclass(frozen=True)
class Death:
    """How a start is to end: at the n-th time that saving reaches a point, or at a moment.

    point: of `POINTS`; "" for a moment.
    moment: share of the time that a whole training takes from here on, its start included.
    is_fresh: in a process that imports everything itself, which then belongs to that time.
    """

    point: str = ""
    occurrence: int = 1
    moment: float = 0.0
    is_fresh: bool = False

    @property
    def kind(self) -> str:
        """A word for it."""
        return (self.point or "moment") + (", fresh process" if self.is_fresh else "")


@dataclass(frozen=True)
class Pace:
    """CPU seconds of imports, of a start until its first step, and of all steps."""

    imports: float = 6.0
    start: float = 1.0
    steps: float = 3.0

    def seconds(self, death: Death, done: int) -> float:
        """CPU seconds until a death at a moment, after steps that have been done."""
        left = self.steps * (1 - done / STEPS)
        return death.moment * (self.imports * death.is_fresh + self.start + left)


@dataclass
class Start:
    """What became of one start of a life.

    death: that was meant to end it, None to let it live.  has_died: of it.
    resumed_at: the step it took up, None where training had not begun.  problems: what is wrong.
    """

    death: Death | None
    has_died: bool = False
    resumed_at: int | None = None
    problems: list[str] = field(default_factory=list)


class FreshChild:
    """A process of its own with the methods of a `Child`."""

    def __init__(self, order: Order) -> None:
        words = fresh(order)
        environment = {**ENVIRONMENT, "PATH": ""}
        self._process = subprocess.Popen(words, cwd=ROOT, env=environment)
        self.pid = self._process.pid

    def wait(self, timeout: float) -> int | None:
        """Its exit code, None while it runs."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()


class Life:
    """A training in a directory, killed and started again through the command line.

    config: see `configuration`.  directory: of the life alone; runs are under its `logs`.
    pace: what moments of death go by.
    """

    def __init__(
        self, server: ForkServer, config: dict[str, Any], directory: Path, pace: Pace = Pace()
    ) -> None:
        self.server, self.directory, self.pace = server, directory, pace
        directory.mkdir(parents=True)
        self.notes = directory / "notes.jsonl"
        self.said = directory / "said.txt"
        noted = {"target": "tests.killing.Noted", "params": {"path": str(self.notes)}}
        config["lightning"]["callbacks"]["noted"] = noted
        self._config = write(directory / "config.yaml", config)
        self._has_workers = config["data"]["params"]["num_workers"] > 0

    def live(self, deaths: Sequence[Death] = ()) -> list[Start]:
        """Start again after each death until training ends, at the latest after the last one."""
        starts = []
        for death in (*deaths, None):
            starts.append(self._start(death))
            if not starts[-1].has_died:
                break
        return starts

    @property
    def run(self) -> Path | None:
        """The run directory that has checkpoints; None where none has any yet."""
        found = {path.parents[1] for path in self.directory.glob("logs/*/checkpoints/*.ckpt")}
        assert len(found) < 2, found
        return found.pop() if found else None

    def measured(self) -> Pace:
        """The pace of a life of one start."""
        begun, ended = (note["cpu"] for note in self._noted())
        return Pace(start=begun, steps=ended - begun)

    def _start(self, death: Death | None) -> Start:
        start, run, before = Start(death), self.run, len(self._noted())
        argv = ["-t", "-r", str(run)] if run else ["-t", "-b", self._config]
        expected = 0 if run is None else self._newest(run, start)
        child = self._child(argv, death)
        code = self._ended(child, death, expected)
        start.has_died = code == -9
        if code not in (0, -9) or (death is None and code != 0):
            start.problems.append(f"exit code {code}, see {self.said}")
        noted = self._noted()[before:]
        if noted:
            start.resumed_at = noted[0]["step"]
            if start.resumed_at != expected:
                start.problems.append(f"resumed at {start.resumed_at}, the newest is {expected}")
        if self._has_workers and not gone(child.pid):
            start.problems.append(f"orphans: {group(child.pid)}")
        return start

    def _child(self, argv: list[str], death: Death | None) -> Child | FreshChild:
        before = []
        if death and death.point:
            before.append(("tests.killing.die_at", (death.point, death.occurrence)))
        order = Order(argv, str(self.directory), str(self.said), before)
        return FreshChild(order) if death and death.is_fresh else self.server.start(order)

    def _ended(self, child: Child | FreshChild, death: Death | None, done: int) -> int | None:
        if death and not death.point:
            seconds = self.pace.seconds(death, done)
            while (code := child.wait(0)) is None and cpu_seconds(child.pid) < seconds:
                time.sleep(0.01)
            if code is not None:
                return code
            child.kill()
        return child.wait(LIMIT)

    def _newest(self, run: Path, start: Start) -> int:
        """The step of the checkpoint to go on from; all must be whole, and none later than it."""
        steps = []
        for path in run.glob("checkpoints/*.ckpt"):
            try:
                steps.append(read(path)["global_step"])
            except (OSError, RuntimeError, EOFError) as error:
                start.problems.append(f"damaged: {path}: {error}")
        newest = newest_valid(run / "checkpoints")
        step: int = read(newest)["global_step"] if newest else 0
        if step != max(steps):
            start.problems.append(f"the newest checkpoint is at {step}, another at {max(steps)}")
        return step

    def origins(self) -> set[str]:
        """Names of the checkpoints that its starts went on from."""
        return {Path(note["from"]).name for note in self._noted() if note["from"]}

    def _noted(self) -> list[dict[str, Any]]:
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return [json.loads(line) for line in lines]


def cpu_seconds(pid: int) -> float:
    """What a process has used so far, in hundredths; it may have ended."""
    _, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")
    return sum(map(int, rest.split()[11:13])) / os.sysconf("SC_CLK_TCK")


def gone(pid: int) -> bool:
    end = time.monotonic() + WORKERS_END
    while group(pid):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def same_run(life: Life, whole: Path) -> list[str]:
    """What the run of a broken life has otherwise than one that nothing broke.

    Their files, all that their last checkpoints hold but counts and paths of Lightning's, and what
    they logged in each step.
    """
    found = []
    run = life.run
    assert run is not None
    one, other = (_files(each / "checkpoints") for each in (run, whole))
    # a run that died after its last step has nothing left to train, and removes no surplus; and
    # Lightning never removes what a start went on from
    points = {name for name in one if name.startswith("resume-")} | life.origins() - {*other}
    if one.keys() - points != other.keys() - points or not other.keys() <= one.keys():
        found.append(f"files: {sorted(one)}, not {sorted(other)}")
    for name in [name for name in one if name in other and not name.startswith("resume-")]:
        if name.endswith(".ckpt"):
            pair = [_compared(read(each[name])) for each in (one, other)]
            found += _first(f"{name}: {what}" for what in differences(*pair))
    got, want = losses(run), losses(whole)
    return found + _first(f"logged at step {where}" for where in differences(got, want))


def _first(found: Iterator[str], shown: int = 3) -> list[str]:
    """Those that are shown; where one tensor differs, all do."""
    every = list(found)
    return [*every[:shown], f"and {len(every) - shown} more"] if len(every) > shown else every


def _files(directory: Path) -> dict[str, Path]:
    """Files by name; a resume point may have a number, if its step was saved before a kill, too."""
    return {_NUMBERED.sub(r"\1", path.name): path for path in directory.iterdir()}


def _compared(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in checkpoint.items() if name not in _OF_ITS_OWN}
