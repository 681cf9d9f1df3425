"""Trainings that differ in a part of their configuration, run with several seeds and compared.

Each training is one run of the training command in a process of its own. Its last metrics are kept
beside its run, with what it was told, so a comparison that was stopped goes on where it was and
never mixes figures of different configurations.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from ldm.config import ConfigError, did_you_mean
from ldm.evaluation.curves import read_metrics
from ldm.evaluation.tables import markdown_table
from ldm.io.digest import sha256_of

__all__ = ["Result", "Training", "as_markdown", "run_all", "trainings", "values_of"]

Metrics = dict[str, float]

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


@dataclass(frozen=True)
class Result:
    """What became of a training: the last value of each of its metrics."""

    training: Training
    metrics: Metrics


def trainings(
    base: str, variants: Sequence[str], seeds: Sequence[int], out: Path, words: Sequence[str] = ()
) -> list[Training]:
    """Every variant with every seed, seed by seed, so that a first round of all is soon there.

    base: YAML of the training.  variants: YAML files merged over it, named by their stems.
    words: further words of the command line, overrides for instance.
    Raises ConfigError for a file that is not there, and for two variants of one name.
    """
    for path in (base, *variants):
        if not Path(path).is_file():
            raise ConfigError(f"{path}: there is no such file")
    names = [Path(path).stem for path in variants]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two variants are named {name!r}; rename one of the files")
    return [
        Training(name, seed, ("-b", base, path, *words), out / f"{name}-{seed}")
        for seed in seeds
        for name, path in zip(names, variants, strict=True)
    ]


def run_all(
    planned: Sequence[Training], *, jobs: int = 1, on_end: Callable[[Training], None]
) -> list[Result]:
    """Run what has not been run yet, `jobs` at a time, each on one thread.

    on_end: told of each as it ends, also of those that had ended before.
    Raises ConfigError with the last lines of the first training that fails, what has ended stays;
    and before any is started for one that has ended in another configuration.
    """
    for training in planned:
        _require_same(training)
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(_metrics_of, training): training for training in planned}
        for future in as_completed(running):
            if error := future.exception():
                pool.shutdown(cancel_futures=True)
                raise error
            on_end(running[future])
    return [Result(training, _recorded(training)) for training in planned]


def _metrics_of(training: Training) -> None:
    """Train, unless that was done, and record the last metrics."""
    told = training.told()  # before it starts: a file may change while it runs
    if training.record.is_file():
        return
    if training.directory.exists():  # a start that did not end
        shutil.rmtree(training.directory)
    training.directory.mkdir(parents=True)
    log = training.directory / "log.txt"
    with log.open("w", encoding="utf-8") as lines:
        done = subprocess.run(
            training.command(),
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=lines,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        last = "\n".join(log.read_text(encoding="utf-8").splitlines()[-5:])
        raise ConfigError(f"{training.variant}, seed {training.seed}: the training failed:\n{last}")
    (run,) = (path for path in training.directory.iterdir() if path.is_dir())
    metrics = {name: curve[-1][1] for name, curve in read_metrics(run).items()}
    text = json.dumps({"told": told, "metrics": metrics}, indent=1)
    training.record.write_text(text, encoding="utf-8")


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


def _recorded(training: Training) -> Metrics:
    record = json.loads(training.record.read_text(encoding="utf-8"))
    metrics: Metrics = record["metrics"]
    return metrics


def as_markdown(results: Sequence[Result], metrics: Sequence[str]) -> str:
    """A table: a row per variant, a column per metric, mean and deviation over the seeds.

    Raises ConfigError for a metric that a training does not have.
    """
    columns = values_of(results, metrics).values()
    seeds = Counter(result.training.variant for result in results)
    rows = [
        [name, *(_over(column[name]) for column in columns), str(count)]
        for name, count in seeds.items()
    ]
    return markdown_table(["variant", *metrics, "seeds"], rows)


def values_of(
    results: Sequence[Result], metrics: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """Metric to variant to the values of its seeds.

    Raises ConfigError for a metric that a training does not have.
    """
    values: dict[str, dict[str, list[float]]] = {metric: {} for metric in metrics}
    for result in results:
        for metric, found in values.items():
            if metric not in result.metrics:
                near = did_you_mean(metric, result.metrics)
                raise ConfigError(f"--metrics {metric}: is not among those of the trainings{near}")
            found.setdefault(result.training.variant, []).append(result.metrics[metric])
    return values


def _over(values: Sequence[float]) -> str:
    """Mean and, of several, standard deviation."""
    mean = f"{statistics.fmean(values):.4g}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2g}"
