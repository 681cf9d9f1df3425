"""One file that is to be there when a data set is prepared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ldm.config import ConfigError

__all__ = ["Record", "require_inside", "stem"]


@dataclass(frozen=True)
class Record:
    """A file by its name and its bytes, which are read only where the file is not there yet.

    name: relative to the output directory, with forward slashes.
    content: reads the bytes; called at most once, and before the next record is asked for, as an
        archive is read from its beginning to its end.
    size: length of the bytes, where the source knows it without reading them.
    """

    name: str
    content: Callable[[], bytes]
    size: int | None = None


def require_inside(name: str) -> None:
    """Raise ConfigError for a name that would leave the output directory, or be its own."""
    parts = name.split("/")
    is_odd = "\\" in name or any(ord(sign) < ord(" ") for sign in name)
    if is_odd or not {"", ".", ".."}.isdisjoint(parts):
        raise ConfigError(
            f"the source names a file {name!r}; expected a relative name that stays in the "
            "output directory"
        )


def stem(name: str) -> str:
    """The last part of a name, without its ending."""
    return name.rpartition("/")[2].rpartition(".")[0] or name.rpartition("/")[2]
