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
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ldm.config import ConfigError, nearest_path
from ldm.log import log, rank

__all__ = [
    "RunDir",
    "checkpoint_of",
    "model_files",
    "new_run",
    "newest_run",
    "resumable",
    "resume_run",
    "run_of",
    "taken_back_on_error",
]

_MOMENT = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:-(\d+))?"  # of a run's start, and which one of it
_LONGEST_NAME = 200  # bytes of a name, beside the time


@dataclass(frozen=True)
class RunDir:
    """A run's directory, the time of this start, and the checkpoint to go on from.

    resume_from: None where training begins.
    is_anew: the directory is of a start that left no checkpoint, and what it recorded is replaced.
    """

    path: Path
    now: str
    resume_from: Path | None = None
    is_anew: bool = False

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are."""
        return self.path / "checkpoints"

    @property
    def configs(self) -> Path:
        """Where the run's configurations are."""
        return self.path / "configs"

    def config_files(self) -> list[Path]:
        """The configurations of the run so far, oldest first; none where it starts anew."""
        if self.is_anew:
            return []
        return [
            path
            for kind in ("project", "lightning")
            for path in sorted(
                self.configs.glob(f"*-{kind}.yaml"),
                key=lambda path: path.stem.rpartition("-")[0],
            )
        ]


def _now() -> str:
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%dT%H-%M-%S")


def _ending(name: str | None, bases: Sequence[str], postfix: str) -> str:
    """What comes after the time in a run directory's name."""
    label = name or (Path(bases[0]).stem if bases else "")
    ending = (f"_{label}" if label else "") + postfix
    if "/" in ending or not ending.isprintable() or len(ending.encode()) > _LONGEST_NAME:
        shown = ending[:40]
        raise ConfigError(f"-n/--name and -f/--postfix: {shown!r}; expected a name of a directory")
    return ending


def new_run(logdir: str, name: str | None, bases: Sequence[str], postfix: str) -> RunDir:
    """The directory of a new run, not yet made: `<logdir>/<time>_<name or config><postfix>`.

    A second run of the same name in the same second gets a number after its time.
    """
    ending = _ending(name, bases, postfix)
    now = _unused(lambda now: (Path(logdir) / (now + ending)).exists())
    return RunDir(Path(logdir) / (now + ending), now)


def _unused(is_taken: Callable[[str], bool]) -> str:
    """The time, with a number after it when something else began in the same second."""
    start = _now()
    names = (start, *(f"{start}-{number}" for number in range(2, 100)))
    return next((name for name in names if not is_taken(name)), start)


def newest_run(logdir: str, name: str, postfix: str) -> RunDir:
    """The start that `--auto-resume` makes in the directories of a name, in any state these are in.

    It goes on with the newest run of this name that has a valid checkpoint. Where none has one, it
    starts anew in the newest directory, and where there is no directory, it is a new run.
    """
    ending = _ending(name, [], postfix)
    named = re.compile(_MOMENT + re.escape(ending))
    paths = [path for path in Path(logdir).glob("*") if path.is_dir()]
    matches = [match for path in paths if (match := named.fullmatch(path.name))]
    matches.sort(key=lambda match: (match[0][:19], int(match[1] or 1)), reverse=True)
    runs = [Path(logdir) / match[0] for match in matches]
    for run in runs:
        if (checkpoint := _newest(run)) is not None:
            return _start(run, checkpoint)
        log.warning("%s: has no checkpoint to go on from", run)
    if runs:
        log.info("starting anew in %s", runs[0])
        return RunDir(runs[0], _unused_in(runs[0]), is_anew=True)
    log.info("no run in %s is called %s: starting it", logdir, ending.removeprefix("_"))
    return new_run(logdir, name, [], postfix)


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


def resumable(path: str) -> Path:
    """The checkpoint that training goes on from: the newest valid one of a run, or the one named.

    Raises ConfigError when there is no such path, or no valid checkpoint in it; where a checkpoint
    is named that is damaged, the newest valid one of its run is named beside it.
    """
    if not Path(path).is_dir():
        checkpoint = checkpoint_of(path)
        _require_whole(checkpoint)
        return checkpoint
    found = _newest(Path(path))
    if found is None:
        names = ", ".join(sorted(file.name for file in _checkpoints_in(path).glob("*.ckpt")))
        what = f"none of {names} is a checkpoint" if names else "it has no checkpoints/*.ckpt"
        raise ConfigError(f"{path}: {what} that training can go on from")
    return found


def _require_whole(checkpoint: Path) -> None:
    from ldm.io.manifest import damage

    if (reason := damage(checkpoint)) is None:
        return
    run = run_of(str(checkpoint))
    newest = None if run is None else _newest(run)
    hint = (
        "no other checkpoint of its run is valid"
        if newest is None
        else f"the newest valid one of its run is {newest}: give that, or -r {run}"
    )
    raise ConfigError(f"{checkpoint}: damaged, {reason}; {hint}")


def _newest(run: Path) -> Path | None:
    """The newest valid checkpoint of a run; damaged ones are named, and so is what is chosen."""
    from ldm.io.manifest import newest_valid  # reads with torch: after the quick checks

    found = newest_valid(_checkpoints_in(run))
    if found is not None:
        is_last = found.name == "last.ckpt"
        why = "its newest" if is_last else "the newest of it that is valid, and no last.ckpt"
        log.info("%s: going on from %s, %s", run, found.relative_to(run), why)
    return found


def _checkpoints_in(run: str | Path) -> Path:
    return Path(run) / "checkpoints"


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

    Raises ConfigError when there is no such path, no valid checkpoint in it, or no run around it.
    """
    checkpoint = resumable(path)
    run = run_of(path)
    if run is None:
        raise ConfigError(
            f"{path}: lies in no RUN/checkpoints/; --resume_from_checkpoint goes on from it in a "
            "new run"
        )
    return _start(run, checkpoint)


def _start(run: Path, checkpoint: Path) -> RunDir:
    return RunDir(run, _unused_in(run), checkpoint)


def _unused_in(run: Path) -> str:
    """A time at which no other start of the run has left records."""
    configs = run / "configs"
    return _unused(lambda now: bool(list(configs.glob(f"{now}-[a-z]*.yaml"))))


@contextmanager
def taken_back_on_error(run: RunDir) -> Iterator[None]:
    """Remove a new run's directory when the start inside fails with a ConfigError.

    What has a checkpoint stays, or a list of bad samples: it is more than a start. One process
    decides, which knows whether it has written any.
    """
    missing = [path for path in (run.path, *run.path.parents) if not path.exists()]
    try:
        yield
    except ConfigError:
        has_more = any(run.checkpoints.glob("*.ckpt")) or (run.path / "bad_samples.log").exists()
        if missing and not has_more and not rank():
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
