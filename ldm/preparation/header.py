"""Sizes of images, by the headers of their files."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from ldm.data.decoding import UNREADABLE, reason
from ldm.data.opening import opened

__all__ = ["Sizes", "upright_header_size"]

_ORIENTATION = 0x0112  # EXIF; 5 to 8 lie on their side


def upright_header_size(file: Path | IO[bytes]) -> tuple[int, int]:
    """Width and height of an image turned upright, without its pixels.

    Raises one of `ldm.data.decoding.UNREADABLE`.
    """
    with opened(file) as image:
        width, height = image.size
        lies = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return (height, width) if lies else (width, height)


class Sizes:
    """Sizes of the images of a directory, noted so that a job which was stopped goes on.

    root: the directory.  notes: file of lines of name, width and height. What stands behind its
    last whole line is cut off.
    """

    def __init__(self, root: Path, notes: Path) -> None:
        self.root, self._notes = root, notes
        self._known: dict[str, tuple[int, int]] = {}
        if notes.exists():
            content = notes.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                with notes.open("r+b") as file:
                    file.truncate(len(whole))
            for line in whole.decode("utf-8", "surrogateescape").splitlines():
                name, width, height = line.rsplit("\t", 2)
                self._known[name] = int(width), int(height)

    def of(self, names: Sequence[str], pool: ThreadPoolExecutor) -> list[tuple[int, int] | str]:
        """Width and height of each image in pixels, upright, or what is wrong with it."""
        new = [name for name in names if name not in self._known]
        found = dict(zip(new, pool.map(self._look, new), strict=True))
        good = {name: size for name, size in found.items() if not isinstance(size, str)}
        if good:
            with self._notes.open("a", encoding="utf-8", errors="surrogateescape") as file:
                file.writelines(f"{name}\t{wide}\t{high}\n" for name, (wide, high) in good.items())
            self._known |= good
        return [self._known.get(name) or found[name] for name in names]

    def forget(self) -> None:
        """Remove the notes, when nothing needs them any longer."""
        self._notes.unlink(missing_ok=True)

    def _look(self, name: str) -> tuple[int, int] | str:
        try:
            return upright_header_size(self.root / name)
        except UNREADABLE as error:
            return reason(error)
