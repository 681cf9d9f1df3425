"""What a directory's checkpoints should be, in `manifest.json` beside them, and which are so."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ldm.config import ConfigError
from ldm.io.atomic import Written, digest_of, write_atomically
from ldm.io.unpickle import unpickle
from ldm.log import log

__all__ = [
    "LAST",
    "MANIFEST",
    "Entry",
    "damage",
    "entries",
    "entry_of",
    "newest_valid",
    "record",
    "require_intact",
]

MANIFEST = "manifest.json"
LAST = "last.ckpt"


@dataclass(frozen=True)
class Entry:
    """What a file was when it was written.

    file: its name.  step, epoch: of the training.  size: in bytes.  sha256: hexadecimal.
    time: when it was written, in seconds since 1970.
    is_whole: training can go on from it; it holds optimizers too, not just weights.
    needs: file beside it (or in the directory above) that holds its first stage.
    """

    file: str
    size: int
    sha256: str
    time: float
    step: int | None = None
    epoch: int | None = None
    is_whole: bool = False
    needs: str | None = None

    @classmethod
    def of(cls, file: str, written: Written, checkpoint: Mapping[str, Any]) -> Entry:
        """The entry of a checkpoint that has just been written."""
        return cls(
            file,
            written.size,
            written.sha256,
            time.time(),
            checkpoint.get("global_step"),
            checkpoint.get("epoch"),
            is_whole="optimizer_states" in checkpoint,
            needs=checkpoint.get("first_stage_file", {}).get("file"),
        )


def entries(directory: Path) -> dict[str, Entry]:
    """The entries of a directory's manifest by file name, in the order of writing.

    None where there is no manifest; one that cannot be read counts as none, with a warning.
    """
    path = directory / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {entry.file: entry for entry in (_entry(each) for each in found)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("%s cannot be read (%s); checkpoints are judged without it", path, error)
        return {}


def record(directory: Path, *added: Entry, removed: Iterable[str] = ()) -> None:
    """Write a manifest with these entries in place of those of the same name, or without some.

    Nothing is written when nothing changes.
    """
    before = entries(directory)
    gone = {*removed, *(entry.file for entry in added)}
    kept = {name: entry for name, entry in before.items() if name not in gone}
    after = kept | {entry.file: entry for entry in added}
    if after == before:
        return
    text = json.dumps({"files": [asdict(entry) for entry in after.values()]}, indent=1)
    content = f"{text}\n".encode()
    write_atomically(directory / MANIFEST, lambda sink: sink.write(content), is_announced=False)


def entry_of(path: Path) -> Entry | None:
    """The entry of a file, under this name or another name of the same file."""
    found = entries(path.parent)
    if path.name in found:
        return found[path.name]
    return next(
        (entry for entry in found.values() if _is_same(path.parent / entry.file, path)), None
    )


def damage(path: str | Path) -> str | None:
    """Why a file is not what its manifest entry says; None when it is.

    A file without an entry (of an older run, or copied there) must be one that can be read wholly.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    entry = entry_of(path)
    if entry is None:
        return _unreadable(path)
    if size != entry.size:
        return f"it has {size} bytes, {entry.size} were written"
    try:
        if digest_of(path) != entry.sha256:
            return "its bytes are not those that were written (SHA-256)"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return _damage_of_needed(path, entry.needs)


def require_intact(path: str | Path) -> None:
    """Raise ConfigError for a file that is not what its manifest entry says (`damage`)."""
    if reason := damage(path):
        raise ConfigError(
            f"{path}: damaged, {reason}; expected the file as it was written: take an earlier "
            "one, or save what you have changed under another name"
        )


def newest_valid(directory: Path) -> Path | None:
    """The newest checkpoint of a run's `checkpoints/` that training can go on from, verified.

    It is called `last.ckpt` where that is a name of it. Each damaged one is passed by with a
    warning. None where there is none.
    """
    found = entries(directory)
    last = directory / LAST
    names = {entry.file for entry in found.values() if entry.is_whole}
    names |= {path.name for path in directory.glob("*.ckpt") if path.name not in found}
    if any(_is_same(last, directory / name) for name in names - {LAST}):
        names.discard(LAST)
    for path in sorted(map(directory.joinpath, names), key=lambda path: _age(path, found)):
        if reason := damage(path):
            log.warning("%s is passed by: %s", path, reason)
        elif path.name in found or _is_whole(path):
            return last if _is_same(last, path) else path
    return None


def _entry(found: dict[str, Any]) -> Entry:
    """An entry as it was read; ValueError or TypeError when it is none."""
    entry = Entry(**found)
    names = [entry.file] if entry.needs is None else [entry.file, entry.needs]
    if any(name in ("", "..") or Path(name).name != name for name in names):
        raise ValueError(f"{names} are no names of files")
    if not isinstance(entry.size, int) or not isinstance(entry.time, int | float):
        raise TypeError("size and time are numbers")
    return entry


def _damage_of_needed(path: Path, file: str | None) -> str | None:
    if file is None:
        return None
    beside = path.with_name(file)
    reason = damage(beside if beside.exists() else path.parent.parent / file)
    return f"its first stage {file}: {reason}" if reason else None


def _age(path: Path, found: dict[str, Entry]) -> tuple[float, str]:
    """Sorts the newest first."""
    if path.name in found:
        return -found[path.name].time, path.name
    try:
        return -path.stat().st_mtime, path.name
    except OSError:  # a link to nowhere
        return 0.0, path.name


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


def _unreadable(path: Path) -> str | None:
    """Why a file that has no entry cannot be read wholly."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip()
            return f"its part {bad} is damaged (CRC)" if bad else None
        if path.suffix == ".ckpt":
            unpickle(path)  # of an older format
    except ConfigError:
        return "it is no checkpoint, or is incomplete"
        if path.suffix == ".safetensors":
            safe_open(path, "pt")  # compares sizes
    except (OSError, zipfile.BadZipFile, SafetensorError, EOFError, NotImplementedError) as error:
        return f"it cannot be read: {error}"
    return None


def _is_whole(path: Path) -> bool:
    """Whether a file without an entry holds what training needs to go on."""
    try:
        return "optimizer_states" in unpickle(path)
    except (ConfigError, TypeError):
        return False
