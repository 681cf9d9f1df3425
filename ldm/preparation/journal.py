"""What a directory was prepared from, and how: `prepared.json` in it.

A directory may hold several parts, such as `train` and `val`. Each has its sources, as they were,
and its settings; a command that says otherwise is refused, as its files would be mixed with those
that are there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.config import ConfigError

__all__ = ["JOURNAL", "Journal", "Plan", "fingerprint", "write_whole"]

JOURNAL = "prepared.json"
_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """What is to be prepared.

    part: name within the output directory.  sources: files, or directories.
    settings: whatever else decides which files are written and what is in them.
    expected: number of files; None when any number will do.
    digests: SHA-256 of the sources, in their order, in hexadecimal; none where they are not known.
    stems: the names of all files, without directories and endings, where they are known.
    """

    part: str
    sources: tuple[Path, ...]
    settings: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    expected: int | None = None
    digests: tuple[str, ...] = ()
    stems: tuple[str, ...] = ()

    def as_it_is(self) -> dict[str, Any]:
        """Sources and settings, to be compared with those of another time."""
        return {"sources": list(map(fingerprint, self.sources)), "settings": dict(self.settings)}


def fingerprint(source: Path) -> dict[str, str | int]:
    """A file by its name, size in bytes and time of change in ns; a directory by its path."""
    if source.is_dir():
        return {"directory": str(source.resolve())}
    found = source.stat()
    return {"file": source.name, "size": found.st_size, "mtime_ns": found.st_mtime_ns}


class Journal:
    """The journal of a directory; `out` must exist.  Raises ConfigError for one that is damaged."""

    def __init__(self, out: Path) -> None:
        self._path = out / JOURNAL
        self._parts: dict[str, dict[str, Any]] = {}
        if self._path.is_file():
            try:
                self._parts = dict(json.loads(self._path.read_text(encoding="utf-8"))["parts"])
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"{self._path}: is not a journal of a preparation; expected the one that was "
                    "written here, or none"
                ) from error

    def begin(self, plan: Plan) -> bool:
        """Whether this part was begun before; ConfigError when it was begun otherwise."""
        now, before = plan.as_it_is(), self._parts.get(plan.part)
        if before is not None:
            for key, value in now.items():
                if before[key] != value:
                    raise ConfigError(
                        f"{self._path}: the part {plan.part!r} was begun with {key} "
                        f"{_told(before[key])}, and now with {_told(value)}; expected the same, or "
                        "another --out"
                    )
            self._update(plan, is_done=False)
            return True
        self._parts[plan.part] = {**now, "digests": [], "is_done": False}
        self._write()
        return False

    def checked_digests(self, plan: Plan) -> list[str]:
        """The digests that the sources of a part were found to have."""
        return list(self._parts[plan.part]["digests"])

    def note_digests(self, plan: Plan, digests: list[str]) -> None:
        """Remember that the sources of a part have these digests, so that none is read again."""
        self._update(plan, digests=digests)

    def finish(self, plan: Plan, count: int) -> None:
        """Note that all files of a part are there, and how many."""
        self._update(plan, is_done=True, count=count)

    def count(self, part: str) -> int | None:
        """How many files a part has; None where they were never all there."""
        found = self._parts.get(part, {}).get("count")
        return None if found is None else int(found)

    def is_done(self, part: str) -> bool:
        """Whether all files of a part are there."""
        return bool(self._parts.get(part, {}).get("is_done"))

    def has_done(self, plan: Plan) -> bool:
        """Whether all files of this very plan are there, by sources and settings."""
        before = self._parts.get(plan.part, {})
        return self.is_done(plan.part) and before | plan.as_it_is() == before

    def _update(self, plan: Plan, **changes: Any) -> None:
        self._parts[plan.part] |= changes
        self._write()

    def _write(self) -> None:
        content = {"version": _VERSION, "parts": self._parts}
        write_whole(self._path, (json.dumps(content, indent=2) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, also when the process is killed."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _told(value: object) -> str:
    return json.dumps(value)
