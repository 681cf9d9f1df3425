"""A run is trained by one process (and those that it trains with) at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from ldm.config import ConfigError
from ldm.log import log, rank

__all__ = ["held"]

_UNKNOWN = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)  # to the file system
_OPEN: set[int] = set()


def _close_inherited() -> None:
    """In a process that was forked: it would keep the locks when its parent is gone."""
    for descriptor in _OPEN:
        os.close(descriptor)
    _OPEN.clear()


os.register_at_fork(after_in_child=_close_inherited)


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold the lock that is a file; the system gives it back however the process ends.

    The file says who holds it, by host and process, and is removed at the end. Only the first of
    the processes that train together takes it. Its directory must be there.

    what: that is held, for the message.
    Raises ConfigError when another process holds it.
    """
    if rank():
        yield
        return
    descriptor = _taken(path, what)
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    os.ftruncate(descriptor, 0)
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    os.write(descriptor, f"{holder}, since {since}\n".encode())
    _OPEN.add(descriptor)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        if descriptor in _OPEN:  # else this is a process that was forked inside
            _OPEN.remove(descriptor)
            os.close(descriptor)


def _taken(path: Path, what: str) -> int:
    """The descriptor of the lock's file, which is locked and still lies there."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(descriptor, path, what)
            if _is_there(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # whoever held it has removed it since it was opened


def _lock(descriptor: int, path: Path, what: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
        raise ConfigError(
            f"{what} is being trained by {holder}; wait for its end or stop it, or start another "
            f"run ({path} is locked)"
        ) from None
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        log.warning("%s: this file system has no locks; see that nothing else trains it", path)


def _is_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
