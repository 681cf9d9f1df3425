"""What processes that train together must agree on before they have met: the run's directory.

The first process decides, and the others are told: by an environment variable where Lightning
starts them, through torchrun's store, or, where srun or another launcher started them, through a
file on the disk that they share.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.callbacks.clock import process_start
from ldm.cli.rundir import RunDir
from ldm.config import ConfigError
from ldm.log import rank

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

__all__ = ["agreed", "process_count"]

_RUN = "LDM_RUN"  # environment: what was decided, and by which process
_DIRECTORY = ".starting"
_LIMIT = timedelta(minutes=30)  # the first process may have to read many checkpoints
_EARLIER = 120.0  # seconds that the first process may be ahead of another
_POLL = 0.1  # seconds


def process_count() -> int:
    """How many processes a launcher has started to train together; 1 where there is none."""
    # Lightning leaves WORLD_SIZE behind in the process that has started others, but not RANK
    for name, is_launched in (("WORLD_SIZE", "RANK" in os.environ), ("SLURM_NTASKS", _step())):
        if is_launched and os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 1


def agreed(decide: Callable[[], RunDir], shared: Path) -> RunDir:
    """What the first process decides, in all processes; an error is that of all.

    decide: is called in the first process.
    shared: a directory that all processes see, which need not be there.
    Raises ConfigError, also when the first process says nothing in half an hour.
    """
    if rank():
        return _read(_heard(shared))
    try:
        run = decide()
    except ConfigError as error:
        _tell({"error": str(error)}, shared)
        raise
    told = {name: value if value is None else str(value) for name, value in asdict(run).items()}
    _tell(told | {"is_anew": run.is_anew}, shared)
    return run


def _read(told: dict[str, object]) -> RunDir:
    if "error" in told:
        raise ConfigError(str(told["error"]))
    resume_from = told["resume_from"]
    return RunDir(
        Path(str(told["path"])),
        str(told["now"]),
        None if resume_from is None else Path(str(resume_from)),
        is_anew=bool(told["is_anew"]),
    )


def _tell(told: dict[str, object], shared: Path) -> None:
    text = json.dumps(told | {"process": os.getpid(), "time": time.time()})
    os.environ[_RUN] = text
    if process_count() == 1:
        return
    if _has_store():
        _store().set(_key(), text)
        return
    path = shared / _DIRECTORY / f"{_key()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_old(path.parent)
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _heard(shared: Path) -> dict[str, object]:
    """What the first process of this launch has said, waited for."""
    with suppress(ValueError, KeyError):
        told: dict[str, object] = json.loads(os.environ[_RUN])
        if told["process"] == os.getppid():  # which is Lightning's first process, then
            return told
    if process_count() == 1:
        raise ConfigError(
            f"the environment says that this is process {rank()} of several, but not how many "
            "there are; start them with torchrun or srun, or unset RANK and LOCAL_RANK"
        )
    if _has_store():
        return json.loads(_store().get(_key()))  # type: ignore[no-any-return]
    path = shared / _DIRECTORY / f"{_key()}.json"
    since = time.time() - (time.monotonic() - process_start()) - _EARLIER
    end = time.monotonic() + _LIMIT.total_seconds()
    while time.monotonic() < end:
        with suppress(OSError, ValueError):
            told = json.loads(path.read_text(encoding="utf-8"))
            if _step() or float(str(told["time"])) > since:  # a step of a job is started once
                return told
        time.sleep(_POLL)
    raise ConfigError(
        f"{path}: not written by the first process in {_LIMIT}; all processes must see the "
        "directory, and be started with the same words"
    )


def _step() -> str:
    """Which start of which step of a job of SLURM this is; "" where it is none."""
    job, step = (os.environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    return f"{job}.{step}.{restarts}" if job and step else ""


def _has_store() -> bool:
    """Whether torchrun keeps a store that all of its processes can reach."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _key() -> str:
    """A name for this launch, the same in all of its processes."""
    if _has_store():
        return f"ldm/run/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    names = ["TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"]
    names += [] if _step() else ["MASTER_ADDR", "MASTER_PORT"]
    parts = [_step(), *(os.environ.get(name, "") for name in names)]
    return "-".join(part.replace("/", "_") for part in parts if part)


def _store() -> TCPStore:
    # seconds to import
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(host, port, is_master=False, timeout=_LIMIT)


def _remove_old(directory: Path) -> None:
    """Remove what starts of other days have left."""
    for path in directory.glob("*.json"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - 86400:
                path.unlink()
