"""Write what a source holds, go on where it stopped, count."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from ldm.config import ConfigError
from ldm.log import log
from ldm.preparation.journal import Journal, Plan
from ldm.preparation.record import Record, require_inside, stem

__all__ = ["PARTIAL", "check_count", "check_names", "prepare", "preparing"]

_LOCK = ".prepared.lock"
PARTIAL = ".prepared-"  # hidden: no data set takes such a file for an image
_CHUNK = 2**24  # bytes that are hashed at once
_NAMED = 5  # missing files in one message; the others are counted
_AHEAD = 4  # files per worker that wait in memory to be written


def prepare(
    records: Iterable[Record],
    out: Path,
    plan: Plan,
    *,
    total: int | None = None,
    convert: Callable[[bytes], bytes] | None = None,
    workers: int = 1,
    unit: str = "image",
) -> list[str]:
    """Write the records below `out`; returns the names of all, in their order.

    A file is whole or not there, as it gets its name when it has been written. One that is there is
    not written again: it must be as long as its record says or, where that says nothing, have been
    written by an earlier call with the same plan. So after any end the same call goes on.

    total: number of records where it is known beforehand; a wrong one is then refused before
    anything is written.  convert: what is done to the bytes of a file, in one of `workers` threads.

    Raises ConfigError when the number of records is not the expected one, a name would leave `out`
    or comes twice, a source has another digest, `out` was prepared otherwise or is being prepared
    by another process, or a file cannot be written.
    """
    if total is not None:
        check_count(total, plan)
    with preparing(out, plan) as (journal, is_begun):
        writer = _Writer(out, convert, trusts_lengths_only=not is_begun)
        names = []
        with tqdm(total=total or plan.expected, unit=unit) as bar:
            for name in _written(records, writer, workers):
                names.append(name)
                bar.update()
        check_names(names, plan)
        journal.finish(plan, len(names))
    log.info(
        "%s: %d files, %d of them written now, the others were there", out, len(names), writer.count
    )
    return names


@contextmanager
def preparing(out: Path, plan: Plan) -> Iterator[tuple[Journal, bool]]:
    """Hold `out` for this process and begin the plan in its journal; what `prepare` stands on.

    Gives the journal, whose part the caller finishes, and whether the part was begun before. What
    an earlier process left half-written, files whose names begin with `PARTIAL`, is removed.

    Raises ConfigError as `prepare` does for sources and `out`.
    """
    with _alone(out):
        for left in out.glob(f"{PARTIAL}*"):
            left.unlink()
        journal = Journal(out)
        is_begun = journal.begin(plan)
        _check_digests(plan, journal)
        yield journal, is_begun


def check_count(found: int, plan: Plan) -> None:
    """Raise ConfigError when a source does not hold as many files as are expected."""
    if plan.expected is not None and found != plan.expected:
        kind = f"{plan.expected - found} missing" if found < plan.expected else "too many"
        _refuse(f"{found} files of the part {plan.part!r}, {kind}", plan)


def check_names(names: Sequence[str], plan: Plan) -> None:
    """Raise ConfigError when a source lacks a file, as far as names and number are known."""
    missing = sorted(set(plan.stems).difference(map(stem, names)))
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        found = f"{len(names)} files of the part {plan.part!r}"
        _refuse(f"{found}, missing are {', '.join(missing[:_NAMED])}{more}", plan)
    check_count(len(names), plan)


def _refuse(problem: str, plan: Plan) -> NoReturn:
    sources = " ".join(map(str, plan.sources))
    raise ConfigError(
        f"{sources}: {problem}; expected {plan.expected} (--expect N says another number, "
        "--expect any does not count)"
    )


class _Writer:
    """Writes files whole, and counts those that it wrote."""

    def __init__(
        self,
        out: Path,
        convert: Callable[[bytes], bytes] | None,
        *,
        trusts_lengths_only: bool,
    ) -> None:
        self._out, self._convert = out, convert
        self._trusts_lengths_only = trusts_lengths_only
        self._numbers = count()
        self._directories: set[str] = set()
        self.count = 0

    def is_there(self, record: Record) -> bool:
        """Whether the file of a record has been written before."""
        try:
            size = os.stat(self._out / record.name).st_size
        except OSError:  # also of a name that is too long: writing it says so
            return False
        if record.size is not None and self._convert is None:
            return size == record.size
        # an empty file is what a power cut leaves where a name was written before its bytes
        return size > 0 and not self._trusts_lengths_only

    def write(self, name: str, content: bytes) -> str:
        """Write one file; returns its name."""
        if self._convert is not None:
            try:
                content = self._convert(content)
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from error
        partial = self._out / f"{PARTIAL}{next(self._numbers)}"
        try:
            directory = name.rpartition("/")[0]
            if directory not in self._directories:
                (self._out / directory).mkdir(parents=True, exist_ok=True)
                self._directories.add(directory)
            partial.write_bytes(content)
            os.replace(partial, self._out / name)
        except OSError as error:
            problem = f"cannot be written: {error.strerror}"
            raise ConfigError(f"{self._out / name}: {problem}") from error
        self.count += 1
        return name


def _written(records: Iterable[Record], writer: _Writer, workers: int) -> Iterator[str]:
    """The names of the records in their order, each when its file is there."""
    seen: set[str] = set()
    waiting: deque[Future[str] | str] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for record in records:
            require_inside(record.name)
            if record.name in seen:
                raise ConfigError(f"the source names {record.name!r} twice; expected once")
            seen.add(record.name)
            if writer.is_there(record):
                waiting.append(record.name)
            else:
                waiting.append(pool.submit(writer.write, record.name, record.content()))
            while waiting and (isinstance(waiting[0], str) or len(waiting) > _AHEAD * workers):
                yield _name(waiting.popleft())
        while waiting:
            yield _name(waiting.popleft())


def _name(written: Future[str] | str) -> str:
    return written if isinstance(written, str) else written.result()


def _check_digests(plan: Plan, journal: Journal) -> None:
    """Compare the sources' SHA-256 with those that are known, once."""
    wanted = [digest.lower() for digest in plan.digests]
    if not wanted or wanted == journal.checked_digests(plan):
        return
    if len(wanted) != len(plan.sources):
        raise ConfigError(
            f"--sha256: {len(wanted)} digests of {len(plan.sources)} sources; expected one of each"
        )
    for source, digest in zip(plan.sources, wanted, strict=True):
        found = _sha256(source)
        if found != digest:
            raise ConfigError(f"{source}: its SHA-256 is {found}; expected {digest}")
    journal.note_digests(plan, wanted)


def _sha256(source: Path) -> str:
    """SHA-256 of a file, with progress, as it may be of hundreds of gigabytes."""
    if source.is_dir():
        raise ConfigError(f"--sha256: {source} is a directory; expected a file")
    digest = hashlib.sha256()
    with (
        source.open("rb") as file,
        tqdm(total=source.stat().st_size, unit="B", unit_scale=True, desc="sha256") as bar,
    ):
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Make `out`, and hold it for this process alone; the system lets go when the process ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / _LOCK).open("w")
    except OSError as error:
        raise ConfigError(
            f"--out {out}: expected a directory to write to: {error.strerror}"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"--out {out}: another process prepares it; expected one at a time"
            ) from error
        except OSError:
            log.warning("%s: its file system has no locks; one process at a time, please", out)
        yield
