"""Trainings that differ in a part of their configuration, run with several seeds.

Each is one run of the training command in a process of its own. Its last metrics are kept beside
its run, with what it was told, so a comparison that was stopped goes on where it was and never
mixes figures of different configurations.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from ldm.config import ConfigError, check, load
from ldm.evaluation.comparison import Metrics
from ldm.evaluation.curves import read_metrics
from ldm.io.digest import sha256_of

__all__ = ["Training", "run_all", "trainings"]

# main.py, wherever the comparison is started
_MAIN = "import sys; from ldm.cli.train import main; sys.exit(main())"


@dataclass(frozen=True)
class Training:
    """One training of a comparison.

    variant: the name of what is compared.  seed: of weights, order and noise.
    words: of its command line, without seed and directory.  directory: where its run goes.
    """

    variant: str
    seed: int
    words: tuple[str, ...]
    directory: Path

    @property
    def record(self) -> Path:
        """The file with its last metrics, there once it has ended well."""
        return self.directory / "result.json"

    def command(self) -> list[str]:
        """The command that trains it."""
        where = ["--seed", str(self.seed), "--logdir", str(self.directory)]
        return [sys.executable, "-c", _MAIN, "-t", *where, *self.words]

    def told(self) -> list[str]:
        """The words of its command line, files by the SHA-256 of their content."""
        return [sha256_of(word) if Path(word).is_file() else word for word in self.words]

    def metrics(self) -> Metrics:
        """What its record says."""
        record = json.loads(self.record.read_text(encoding="utf-8"))
        metrics: Metrics = record["metrics"]
        return metrics


def trainings(
    base: Sequence[str],
    variants: Sequence[str],
    *,
    seeds: Sequence[int],
    out: Path,
    overrides: Sequence[str] = (),
    flags: Sequence[str] = (),
) -> list[Training]:
    """Every variant with every seed, seed by seed, so that a first round of all is soon there.

    base: YAML files of the training.  variants: YAML files, each merged over it and named by its
    stem.  overrides: `a.b.c=value`, of all.  flags: further words of their command lines.
    Raises ConfigError for a file that is not there, for two variants of one name, and for what is
    wrong in the configuration of one.
    """
    for path in (*base, *variants):
        if not Path(path).is_file():
            raise ConfigError(f"{path}: there is no such file")
    names = [Path(path).stem for path in variants]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two variants are named {name!r}; rename one of the files")
    for path in variants:
        try:
            check(load([*base, path], overrides))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    return [
        Training(name, seed, ("-b", *base, path, *flags, *overrides), out / f"{name}-{seed}")
        for seed in seeds
        for name, path in zip(names, variants, strict=True)
    ]


def run_all(
    planned: Sequence[Training], *, jobs: int = 1, on_end: Callable[[Training], None]
) -> dict[str, list[Metrics]]:
    """Run what has not been run yet, `jobs` at a time, each on one thread; metrics by variant.

    on_end: told of each as it ends, also of those that had ended before.
    When one fails or on Ctrl-C the others are stopped; what has ended stays.
    Raises ConfigError with the last lines of the first training that fails; and before any is
    started for one that has ended in another configuration.
    """
    for training in planned:
        _require_same(training)
    processes = _Processes()
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(_train, training, processes): training for training in planned}
        try:
            for future in as_completed(running):
                future.result()
                on_end(running[future])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            processes.stop()
            raise
    results: dict[str, list[Metrics]] = {}
    for training in planned:
        results.setdefault(training.variant, []).append(training.metrics())
    return results


@dataclass
class _Processes:
    """What is running at the moment."""

    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    is_stopped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, command: Sequence[str], log: Path) -> int | None:
        """The exit code of a command whose output goes to a file; None if it may not start."""
        with log.open("wb") as lines:
            with self.lock:
                if self.is_stopped:
                    return None
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                process = subprocess.Popen(
                    command, env=environment, stdout=lines, stderr=subprocess.STDOUT
                )
                self.running.append(process)
            code = process.wait()
        with self.lock:
            self.running.remove(process)
        return code

    def stop(self) -> None:
        """End what runs, and let nothing start."""
        with self.lock:
            self.is_stopped = True
            for process in self.running:
                process.terminate()


def _train(training: Training, processes: _Processes) -> None:
    """Train, unless that was done, and record the last metrics."""
    if training.record.is_file():
        return
    told = training.told()  # before it starts: a file may change while it runs
    if training.directory.exists():  # a start that did not end
        shutil.rmtree(training.directory)
    training.directory.mkdir(parents=True)
    log = training.directory / "log.txt"
    code = processes.run(training.command(), log)
    if code is None:
        return
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        last = "\n".join(lines[-5:])
        raise ConfigError(f"{training.variant}, seed {training.seed}: the training failed:\n{last}")
    (run,) = (path for path in training.directory.iterdir() if path.is_dir())
    metrics = {name: curve[-1][1] for name, curve in read_metrics(run).items()}
    part = training.record.with_suffix(".part")
    part.write_text(json.dumps({"told": told, "metrics": metrics}, indent=1), encoding="utf-8")
    part.replace(training.record)  # whole, or not at all


def _require_same(training: Training) -> None:
    """Raise ConfigError for a record of a training that was told something else."""
    if not training.record.is_file():
        return
    told = json.loads(training.record.read_text(encoding="utf-8")).get("told")
    if told != training.told():
        raise ConfigError(
            f"{training.directory}: this training was run with other files or overrides; "
            "remove the directory, or take another --out"
        )
