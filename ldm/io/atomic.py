"""Files that are whole or not there: written beside their place, synced, read again, renamed."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

__all__ = [
    "Sink",
    "Written",
    "digest_of",
    "reached",
    "remove_leftovers",
    "sync_directory",
    "write_atomically",
]

_PARTIAL = ".partial"
_CHUNK = 1 << 22  # bytes: what is hashed at a time, small enough for the processor's cache


def reached(point: str) -> None:
    """Called at each named point of a save; it does nothing, so that a test can stop a save there.

    point: "begin", "middle" (about half of the bytes), "written", "synced", "verified", "renamed";
        of a checkpoint also "first_stage" (before "begin", where one is written), "manifest",
        "last" and "pruned".
    """


@dataclass(frozen=True)
class Written:
    """What came to lie in a file: size in bytes, and SHA-256 as 64 hexadecimal digits."""

    size: int
    sha256: str


class Sink:
    """The file that is being written: hashes what passes, and remembers the error that stopped it.

    half: announces the point "middle" when so many bytes have passed; None announces nothing.
    """

    def __init__(self, file: IO[bytes], half: int | None) -> None:
        self.size = 0
        self.error: BaseException | None = None
        self._file = file
        self._half = half
        self._digest = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        """Write all of it; returns the number of bytes."""
        view = memoryview(data).cast("B")
        with self._error_kept():
            for start in range(0, len(view), _CHUNK):
                self._write(view[start : start + _CHUNK])
        return len(view)

    def flush(self) -> None:
        """Hand what is buffered to the system."""
        with self._error_kept():
            self._file.flush()

    def written(self) -> Written:
        """What has passed."""
        return Written(self.size, self._digest.hexdigest())

    @contextmanager
    def _error_kept(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.error = error
            raise

    def _write(self, part: memoryview) -> None:
        self._file.write(part)
        self._digest.update(part)
        self.size += len(part)
        if self._half is not None and self.size >= self._half:
            self._half = None
            self._file.flush()
            reached("middle")


def write_atomically(
    target: str | Path,
    write: Callable[[Sink], object],
    *,
    expected: int = 0,
    is_announced: bool = True,
) -> Written:
    """Write a file so that at every instant its name leads to a whole one, the old or the new.

    Written beside its place, flushed, synced to the disk, read again and compared by SHA-256,
    renamed, and the directory synced. Whatever goes wrong before the renaming leaves the old file,
    and no half of a new one. A directory that is missing is made.

    write: puts the content into what it is given.
    expected: size in bytes, roughly: where "middle" is.
    is_announced: whether the points are `reached`.

    Raises OSError: no space, no permission, or other bytes on the disk than were written.
    """
    target = Path(target)
    announce = (lambda point: reached(point)) if is_announced else _nothing
    announce("begin")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}{_PARTIAL}")
    try:
        with partial.open("wb") as file:
            sink = Sink(file, expected // 2 if is_announced else None)
            _fill(sink, write)
            file.flush()
            announce("written")
            os.fsync(file.fileno())
            _forget_cached(file.fileno())
        announce("synced")
        if digest_of(partial) != sink.written().sha256:
            raise OSError(errno.EIO, "the disk holds other bytes than were written", str(partial))
        announce("verified")
        partial.replace(target)
    except BaseException:
        with suppress(OSError):  # where it cannot be removed, it could not be written
            partial.unlink()
        raise
    sync_directory(target.parent)
    announce("renamed")
    return sink.written()


def digest_of(path: Path) -> str:
    """SHA-256 of what a file holds now, 64 hexadecimal digits; OSError when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_leftovers(directory: Path) -> None:
    """Remove the halves of files that processes killed while writing have left behind."""
    for path in directory.glob(f".*{_PARTIAL}"):
        path.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Have the names in a directory on the disk, where the file system can do this."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not every file system has this
            raise
    finally:
        os.close(descriptor)


def _fill(sink: Sink, write: Callable[[Sink], object]) -> None:
    """Write; what stopped the file is raised, not what a library made of it.

    torch.save turns any error of the file, Ctrl-C too, into a RuntimeError of its own.
    """
    try:
        write(sink)
    except BaseException as error:
        if sink.error is not None and error is not sink.error:
            raise sink.error from None
        raise


def _forget_cached(descriptor: int) -> None:
    """Have the file read again from the disk, not from memory, where the system can do this."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _nothing(_: str) -> None: ...
