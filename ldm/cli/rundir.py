"""Run directories: their names, what lies where in them, and how a run is found again.

logs/2026-01-31T12-00-00_ffhq/
    checkpoints/   last.ckpt, the best ones
    configs/       <time>-project.yaml, <time>-lightning.yaml
    images/        train/, val/
    metrics/       <time>/metrics.csv, one for each start
    events.out.tfevents.*
"""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ldm.config import ConfigError, nearest_path
from ldm.log import rank

__all__ = [
    "RunDir",
    "checkpoint_of",
    "model_files",
    "new_run",
    "resume_run",
    "run_of",
    "taken_back_on_error",
]

_LONGEST_NAME = 200  # bytes of a name, beside the time

# the processes that Lightning starts for further devices inherit it, so that all have one directory
_TIME = "LDM_RUN_TIME"


@dataclass(frozen=True)
class RunDir:
    """A run's directory, and the checkpoint to go on from (None in a new run)."""

    path: Path
    now: str
    resume_from: Path | None = None

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are."""
        return self.path / "checkpoints"

    @property
    def configs(self) -> Path:
        """Where the run's configurations are."""
        return self.path / "configs"

    def config_files(self) -> list[Path]:
        """The configurations of the run so far, oldest first."""
        return [
            path
            for kind in ("project", "lightning")
            for path in sorted(
                self.configs.glob(f"*-{kind}.yaml"),
                key=lambda path: path.stem.rpartition("-")[0],
            )
        ]


def _now() -> str:
    if rank() and _TIME in os.environ:
        return os.environ[_TIME]
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%dT%H-%M-%S")


def new_run(logdir: str, name: str | None, bases: Sequence[str], postfix: str) -> RunDir:
    """The directory of a new run, not yet made: `<logdir>/<time>_<name or config><postfix>`.

    A second run of the same name in the same second gets a number after its time.
    """
    label = name or (Path(bases[0]).stem if bases else "")
    ending = (f"_{label}" if label else "") + postfix
    if "/" in ending or not ending.isprintable() or len(ending.encode()) > _LONGEST_NAME:
        shown = ending[:40]
        raise ConfigError(f"-n/--name and -f/--postfix: {shown!r}; expected a name of a directory")
    now = _unused(lambda now: (Path(logdir) / (now + ending)).exists())
    return RunDir(Path(logdir) / (now + ending), now)


def _unused(is_taken: Callable[[str], bool]) -> str:
    """The time, with a number after it when something else began in the same second."""
    start = _now()
    names = (start, *(f"{start}-{number}" for number in range(2, 100)))
    now = next((name for name in names if rank() or not is_taken(name)), start)
    os.environ[_TIME] = now
    return now


def checkpoint_of(path: str) -> Path:
    """The checkpoint that a path stands for: itself, or the last one of a run directory.

    Raises ConfigError when there is no such path, or no checkpoint in it.
    """
    given = Path(path)
    try:
        is_there = given.exists()
    except OSError as error:  # a name that is too long, for instance
        raise ConfigError(f"{path[:_LONGEST_NAME]}: cannot be read: {error.strerror}") from error
    if not is_there:
        near = nearest_path(given)
        hint = f"; did you mean {near}?" if near else ""
        raise ConfigError(f"{path}: there is no such run directory or checkpoint{hint}")
    if given.is_file():
        if given.suffix != ".ckpt":
            raise ConfigError(f"{path}: expected a run directory or a .ckpt file")
        return given
    last = given / "checkpoints" / "last.ckpt"
    if not last.is_file():
        others = sorted(file.name for file in last.parent.glob("*.ckpt"))
        hint = f"; it has {', '.join(others[-3:])}, name one of these" if others else ""
        raise ConfigError(f"{path}: there is no checkpoints/last.ckpt in it{hint}")
    return last


def run_of(path: str) -> Path | None:
    """The run directory that a path stands for: itself, or the one of a checkpoint.

    The checkpoint may lie anywhere below `checkpoints/` of the run; None where it lies in none.
    """
    given = Path(path)
    if given.is_dir():
        return given
    above = given.resolve().parents
    return next((each.parent for each in above if each.name == "checkpoints"), None)


def resume_run(path: str) -> RunDir:
    """A start that goes on with the run of a directory or of one of its checkpoints.

    Raises ConfigError when there is no such path, no checkpoint in it, or no run around it.
    """
    checkpoint = checkpoint_of(path)
    run = run_of(path)
    if run is None:
        raise ConfigError(
            f"{path}: lies in no RUN/checkpoints/; --resume_from_checkpoint goes on from it in a "
            "new run"
        )
    configs = run / "configs"
    now = _unused(lambda now: bool(list(configs.glob(f"{now}-[a-z]*.yaml"))))
    return RunDir(run, now, checkpoint)


@contextmanager
def taken_back_on_error(run: RunDir) -> Iterator[None]:
    """Remove a new run's directory when the start inside fails with a ConfigError.

    What has a checkpoint stays: it is more than a start.
    """
    missing = [path for path in (run.path, *run.path.parents) if not path.exists()]
    try:
        yield
    except ConfigError:
        if missing and not any(run.checkpoints.glob("*.ckpt")):
            shutil.rmtree(run.path, ignore_errors=True)
            for parent in missing[1:]:
                with suppress(OSError):  # another run may be in it by now
                    parent.rmdir()
        raise


def model_files(path: str, config: str | None) -> tuple[Path, list[Path]]:
    """The checkpoint of a run, or that a path names, and the configuration of its model.

    config: describes a checkpoint outside a run.
    Raises ConfigError when there is no such path, or no configuration.
    """
    if config and not Path(path).is_dir():
        return Path(path), [Path(config)]
    checkpoint = checkpoint_of(path)
    if config:
        return checkpoint, [Path(config)]
    run = run_of(path)
    recorded = [] if run is None else RunDir(run, now="").config_files()
    files = [each for each in recorded if "project" in each.name]
    if not files:
        raise ConfigError(f"{path}: lies in no run with configs/*-project.yaml; give --config YAML")
    return checkpoint, files
