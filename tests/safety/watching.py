"""What a piece of code does to the world: processes, sockets, files written outside a directory."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# events of Python's audit hooks (PEP 578) after which something else runs, or listens
_RUNS = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "subprocess.Popen",
    "pty.spawn",
    "webbrowser.open",
    "socket.bind",
    "socket.connect",
    "urllib.Request",
    "pickle.find_class",
)
# events whose first arguments, so many of them, are paths that are changed
_CHANGES = {
    "os.chmod": 1,
    "os.chown": 1,
    "os.link": 2,
    "os.mkdir": 1,
    "os.remove": 1,
    "os.rename": 2,
    "os.rmdir": 1,
    "os.symlink": 2,
    "os.truncate": 1,
    "shutil.rmtree": 1,
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# caches of the interpreter, and what is no file
_ALWAYS = ("__pycache__", "/dev/null", "/proc/self", "/dev/shm")


class _Watch:
    """A hook of the interpreter, which cannot be taken away again, only be told to look."""

    def __init__(self) -> None:
        self.inside: list[Path] | None = None
        self.seen: list[str] = []
        self._is_busy = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if self.inside is None or self._is_busy:
            return
        self._is_busy = True
        try:
            self._note(event, arguments)
        finally:
            self._is_busy = False

    def _note(self, event: str, arguments: tuple) -> None:
        if event.startswith(_RUNS):
            self.seen.append(f"{event} {arguments}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            self._note_paths(event, arguments[:1])
        elif event in _CHANGES:
            self._note_paths(event, arguments[: _CHANGES[event]])

    def _note_paths(self, event: str, paths: tuple) -> None:
        for path in paths:
            if not isinstance(path, str | bytes | os.PathLike):
                continue  # a descriptor, which was opened by its path before
            text = os.fsdecode(path)
            place = Path(os.path.realpath(os.path.abspath(text)))
            is_inside = any(place.is_relative_to(each) for each in self.inside or ())
            if not is_inside and not any(part in text for part in _ALWAYS):
                self.seen.append(f"{event} {text}")


_watch: _Watch | None = None


@contextmanager
def watched(*inside: Path) -> Iterator[list[str]]:
    """The list of what the code inside does: a sentence for each event, in their order.

    inside: directories in which it may write.
    """
    global _watch
    _watch = _watch or _Watch()
    _watch.seen = []
    _watch.inside = [Path(os.path.realpath(each)) for each in inside]
    try:
        yield _watch.seen
    finally:
        _watch.inside = None


def below(out: Path) -> list[str]:
    """The names of all files in a directory and below it."""
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
