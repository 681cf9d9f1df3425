"""How long a start may train: the time limit that was given, and the end of SLURM's job."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

from ldm.callbacks import slurm
from ldm.config import ConfigError

__all__ = ["MARGIN", "deadline", "moment", "process_start", "to_seconds"]

MARGIN = 90.0  # seconds before the end of a job, to save in; a tenth of a job that is short

_IMPORTED = time.monotonic()
_NUMBER = r"(\d+(?:\.\d+)?)"
_IN_UNITS = re.compile("".join(rf"(?:{_NUMBER}{unit})?" for unit in "dhms"))
_BY_COLONS = re.compile(r"(?:(\d+):)?(\d+):([0-5]?\d):([0-5]?\d(?:\.\d+)?)")


def to_seconds(given: object) -> float:
    """A duration, `HH:MM:SS`, `DD:HH:MM:SS` or `2h30m`, in seconds.

    In YAML also a mapping of its parts (days, hours, minutes, seconds).
    Raises ConfigError for anything else, and for none at all.
    """
    seconds = 0.0
    if isinstance(given, str):
        text = given.strip().lower().replace(" ", "")
        match = _BY_COLONS.fullmatch(text) or _IN_UNITS.fullmatch(text)
        parts = [float(part or 0) for part in match.groups()] if match else [0.0] * 4
        days, hours, minutes, seconds = parts
        seconds += 60 * (minutes + 60 * (hours + 24 * days))
    elif isinstance(given, Mapping):
        try:
            seconds = timedelta(**given).total_seconds()
        except TypeError:
            seconds = 0.0
    if not seconds > 0:
        hint = ", in quotes, as YAML makes a number of it" if isinstance(given, int) else ""
        raise ConfigError(
            f"lightning.trainer.max_time: {given!r}; expected a duration such as 2h30m, 45s, or "
            f"HH:MM:SS or DD:HH:MM:SS{hint}"
        )
    return seconds


def process_start() -> float:
    """When this process was started, on the clock of `time.monotonic`."""
    age = time.monotonic() - _IMPORTED
    try:
        # the 22nd field, when it started in ticks after the machine; the 2nd may hold spaces
        ticks = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
        started = int(ticks) / os.sysconf("SC_CLK_TCK")
        age = max(age, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, ValueError, IndexError, AttributeError):
        pass  # no Linux: the seconds before the import are missing
    return time.monotonic() - age


def deadline(max_time: float | None) -> float | None:
    """When to save and stop, on the clock of `time.monotonic`; None never.

    max_time: seconds from the start of the process.

    A job of SLURM that has said when it will be ended (SLURM_JOB_END_TIME) stops MARGIN before.
    """
    ends = [] if max_time is None else [process_start() + max_time]
    if slurm.is_batch_job() and (end := slurm.job_end()) is not None:
        left = end - time.time()
        ends.append(time.monotonic() + left - min(MARGIN, left / 10))
    return min(ends, default=None)


def moment(when: float) -> str:
    """A time of the clock of `time.monotonic` as people read it."""
    when_it_is = datetime.now().astimezone() + timedelta(seconds=when - time.monotonic())
    return when_it_is.isoformat(" ", "seconds")
