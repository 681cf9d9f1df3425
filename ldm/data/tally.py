"""How many samples could not be read, which, and when they are too many to go on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import distributed

from ldm.config import ConfigError
from ldm.data.substitutes import Fault
from ldm.log import log
from ldm.ranks import world_size

__all__ = ["LOG", "Tally", "shared_store"]

LOG = "bad_samples.log"  # in the run's directory

_LEAST = 1000  # samples that the rate is taken of at least
_WINDOW = 100_000  # samples after which those before begin to count half
_KEY = "ldm/data/too_many_bad_samples"  # in the store: the batch behind which all end
_DELAY = 50  # batches: with those of the next line, more than one process is ahead of another
_ASKED = 10  # batches between two looks into the store
_NAMED = 10  # bad samples that are named on the terminal; the file has all


def shared_store() -> Any:
    """Where the processes that train together met each other; None for one that is alone."""
    return None if world_size() == 1 else distributed.distributed_c10d._get_default_store()


class Tally:
    """Counts the bad samples that this process met, names each once, and ends what is too bad.

    max_rate: share of the samples, 0 to 1, that may be bad; 0 stops at the first. It is taken of
        1000 samples at least, so that a few early ones decide nothing, and of the latest 100000 to
        200000, so that a disk that fails late is noticed. Each process counts its own samples.
    path: file to which each bad sample is written once, `name<TAB>reason`; the lines of an earlier
        start, and those of other processes, count as written. None writes nothing.
    store: where processes that train together leave word for each other (`shared_store`), so that
        all of them end behind the same batch: 50 batches after one met too many. Nobody waits for
        it, nor for a device. None for a process that is alone, which ends at once.
    """

    def __init__(self, max_rate: float, path: Path | None = None, store: Any = None) -> None:
        self.max_rate, self.path, self.store = max_rate, path, store
        self._batches = 0
        self._end_at: int | None = None  # batches
        self._verdict: str | None = None
        self.seen, self.bad = 0, 0
        self._recent = (0, 0)  # samples and bad ones that the rate is taken of
        self._why: dict[str, str] = {}
        self._written: set[str] = set()
        self._read_to = 0  # bytes of the file that are known

    def count(self, samples: int, faults: Sequence[Sequence[Fault]]) -> None:
        """Takes note of a batch.

        samples: in it.  faults: for each that was replaced, its own, and those of the substitutes
            that could not be read either.

        Raises ConfigError, with their names and counts, when too many were bad.
        """
        self._batches += 1
        self.seen, self.bad = self.seen + samples, self.bad + len(faults)
        recent, bad = self._recent
        if recent >= 2 * _WINDOW:
            recent, bad = recent // 2, bad // 2
        recent, bad = recent + samples, bad + len(faults)
        self._recent = recent, bad
        for fault in (fault for met in faults for fault in met):
            self._note(fault)
        if bad > self.max_rate * max(recent, _LEAST if self.max_rate else 0):
            if self._verdict is None:
                self._leave_word()
            self._verdict = self._too_many(recent, bad)
        self._end_together()

    def tell(self) -> None:
        """Say how many there were, if there were any."""
        if self.bad:
            log.warning(
                "%d of %d samples that this process read were bad and have been replaced: %s%s",
                self.bad,
                self.seen,
                self._reasons(),
                self._where(),
            )

    def _leave_word(self) -> None:
        """Too many were bad: all end, as the first process says to which that happened."""
        if self.store is None:
            self._end_at = self._batches
        else:
            self.store.compare_set(_KEY, "", str(self._batches + _DELAY))

    def _end_together(self) -> None:
        """Raise ConfigError when it is time to: at once, or with the others."""
        is_asked = self.store is not None and self._batches % _ASKED == 0
        if is_asked and self._end_at is None and self.store.check([_KEY]):
            self._end_at = int(self.store.get(_KEY))
        if self._end_at is not None and self._batches >= self._end_at:
            raise ConfigError(
                self._verdict
                or "data.params.max_bad_rate: another process met too many bad samples"
            )

    def _note(self, fault: Fault) -> None:
        name, why = fault
        if name in self._why:
            return
        self._why[name] = why
        self._write(name, why)
        if len(self._why) <= _NAMED:
            log.warning("%s (%s) is bad: another sample takes its place", name, why)
        if len(self._why) == _NAMED:
            log.warning("further bad samples are counted%s", self._where(" and named in"))

    def _write(self, name: str, why: str) -> None:
        """Add a line to the file, unless there is one of this name."""
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                file.seek(self._read_to)
                known = file.read()
                self._read_to += len(known)
                lines = known.decode("utf-8", "replace").splitlines()
                self._written |= {line.partition("\t")[0] for line in lines}
                if name not in self._written:
                    file.write(f"{name}\t{' '.join(why.split())}\n".encode("utf-8", "replace"))
        except OSError as error:
            log.warning("%s: cannot be written: %s", self.path, error.strerror)
            self.path = None

    def _too_many(self, recent: int, bad: int) -> str:
        named = ", ".join(f"{name} ({why})" for name, why in list(self._why.items())[:_NAMED])
        more = f", and {len(self._why) - _NAMED} more" if len(self._why) > _NAMED else ""
        return (
            f"{bad} of {recent} samples cannot be read, more than data.params.max_bad_rate, "
            f"{self.max_rate:g}, allows: {self._reasons()}: {named}{more}{self._where()}; repair "
            "or remove them, or allow more"
        )

    def _reasons(self) -> str:
        """Counts of the reasons, whatever numbers are in them."""
        counts = Counter(re.sub(r"\d+", "N", why) for why in self._why.values())
        return ", ".join(f"{count} x {why}" for why, count in counts.most_common())

    def _where(self, words: str = "; all are named in") -> str:
        return f"{words} {self.path}" if self.path else ""
