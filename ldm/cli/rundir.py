"""Run directories: their names, what lies where in them, and how a run is found again.

logs/2026-01-31T12-00-00_ffhq/
    checkpoints/   last.ckpt, the best ones
    configs/       <time>-project.yaml, <time>-lightning.yaml
    images/        train/, val/
    metrics.csv, events.out.tfevents.*
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.config import ConfigError

__all__ = ["RunDir", "new_run", "resume_run"]


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
        return sorted(
            path
            for kind in ("project", "lightning")
            for path in self.configs.glob(f"*-{kind}.yaml")
        )


def _now() -> str:
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%dT%H-%M-%S")


def new_run(logdir: str, name: str | None, bases: Sequence[str], postfix: str) -> RunDir:
    """The directory of a new run, not yet made: `<logdir>/<time>_<name or config>_<postfix>`."""
    now = _now()
    label = name or (Path(bases[0]).stem if bases else "")
    return RunDir(Path(logdir) / (now + (f"_{label}" if label else "") + postfix), now)


def resume_run(path: str) -> RunDir:
    """The run that a directory or one of its checkpoints belongs to.

    Raises ConfigError when there is no such path, or no checkpoint in it.
    """
    given = Path(path)
    if not given.exists():
        near = sorted(p.name for p in given.parent.glob("*")) if given.parent.is_dir() else []
        hint = f"; {str(given.parent)!r} holds {near[-5:]}" if near else ""
        raise ConfigError(f"--resume {path!r}: there is no such directory or file{hint}")
    if given.is_file():
        if given.suffix != ".ckpt":
            raise ConfigError(f"--resume {path!r}: expected a run directory or a .ckpt file")
        return RunDir(given.resolve().parent.parent, _now(), given)
    last = given / "checkpoints" / "last.ckpt"
    if not last.is_file():
        raise ConfigError(f"--resume {path!r}: there is no checkpoints/last.ckpt in it")
    return RunDir(given, _now(), last)
