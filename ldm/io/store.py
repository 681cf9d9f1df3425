"""A directory of checkpoints: resume points, `last.ckpt` for the newest, and their manifest."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

import torch

from ldm.io import atomic
from ldm.io.manifest import LAST, Entry, entries, entry_of, record
from ldm.io.snapshot import tensors
from ldm.io.unpickle import unpickle
from ldm.log import log

__all__ = ["adopt", "remove", "remove_surplus", "resume_points", "save"]

_RESUME = re.compile(r"resume-\d{9,}(-\d+)?\.ckpt")
_BEST = re.compile(r"epoch=\d{6,}-step=\d{9,}(-v\d+)?\.ckpt")
# what file systems without hard links say
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


def save(checkpoint: Mapping[str, Any], path: Path, *, keep: int = 2) -> None:
    """Write a checkpoint; the one called `last.ckpt` becomes the newest resume point.

    A resume point is a file of its own, `resume-<step>.ckpt`, and `last.ckpt` a second name (hard
    link) for the newest; where the file system has no links, a copy. The name moves when the new
    file has been verified, and older points are removed when it has moved.

    keep: number of resume points, of different steps.

    Raises OSError when it could not be written; the older ones stand.
    """
    directory = path.parent
    directory.mkdir(parents=True, exist_ok=True)
    atomic.remove_leftovers(directory)
    is_last = path.name == LAST
    target = _unused(directory, checkpoint.get("global_step", 0)) if is_last else path
    record(directory, removed=[target.name])  # until it is written, and a new entry made
    written = atomic.write_atomically(
        target,
        lambda sink: torch.save(checkpoint, cast("IO[bytes]", sink)),
        expected=_size(checkpoint),
    )
    entry = Entry.of(target.name, written, checkpoint)
    record(directory, entry, removed=[*_missing(directory), *([LAST] if is_last else [])])
    atomic.reached("manifest")
    if is_last:
        _become_last(target, keep)


def adopt(path: Path, *, keep: int = 2) -> None:
    """Make a checkpoint that was written after `last.ckpt` a resume point, and `last.ckpt`.

    Nothing happens where `last.ckpt` is as new.
    keep: as in `save`.  Raises OSError when it could not be; the checkpoint stays in any case.
    """
    directory = path.parent
    entry, last = _entry(path), entry_of(directory / LAST)
    if last is not None and last.time >= entry.time:
        return
    atomic.remove_leftovers(directory)
    record(directory, entry)
    target = _unused(directory, entry.step or 0)
    _name(path, target)
    record(directory, replace(entry, file=target.name, time=time.time()), removed=[LAST])
    _become_last(target, keep)


def _entry(path: Path) -> Entry:
    """The entry of a checkpoint, made where a process was killed before it had written one."""
    if (entry := entry_of(path)) is not None:
        return entry
    facts = path.stat()
    written = atomic.Written(facts.st_size, atomic.digest_of(path))
    return replace(Entry.of(path.name, written, unpickle(path)), time=facts.st_mtime)


def _become_last(target: Path, keep: int) -> None:
    """Give the newest resume point its second name, and remove those there are too many of."""
    _name(target, target.with_name(LAST))
    atomic.reached("last")
    for old in _surplus(target.parent, keep):
        try:
            remove(old)
        except OSError as error:
            log.warning("%s could not be removed: %s", old, error.strerror or error)
    atomic.reached("pruned")


def remove_surplus(newest: Path, kept: Collection[str]) -> None:
    """Remove best checkpoints that a process had yet to remove when it was killed.

    These have the names that are usual here, are older than `newest`, as the manifest knows, and
    not among the names that are kept. Newer ones stay, as a run may go on from before them.
    """
    entry = entry_of(newest)
    limit = newest.stat().st_mtime if entry is None else entry.time
    for name, each in entries(newest.parent).items():
        if each.time < limit and _BEST.fullmatch(name) and name not in kept:
            remove(newest.with_name(name))


def remove(path: Path) -> None:
    """Remove a checkpoint and its entry; it may be gone already."""
    record(path.parent, removed=[path.name])
    path.unlink(missing_ok=True)


def resume_points(directory: Path) -> list[Path]:
    """The resume points of a directory, the newest first."""
    found = entries(directory)
    points = [path for path in directory.glob("resume-*.ckpt") if _RESUME.fullmatch(path.name)]

    def age(path: Path) -> float:
        return found[path.name].time if path.name in found else path.stat().st_mtime

    return sorted(points, key=age, reverse=True)


def _size(checkpoint: Mapping[str, Any]) -> int:
    """Bytes of all storages."""
    storages = (tensor.untyped_storage() for tensor in tensors(checkpoint))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _unused(directory: Path, step: int) -> Path:
    names = [f"resume-{step:09}.ckpt", *(f"resume-{step:09}-{n}.ckpt" for n in range(2, 1000))]
    return next(path for path in map(directory.joinpath, names) if not path.exists())


def _missing(directory: Path) -> list[str]:
    return [name for name in entries(directory) if not (directory / name).exists()]


def _name(source: Path, name: Path) -> None:
    """Give a file another name beside it, which always leads to a whole file."""
    link = name.with_name(f".{name.name}.partial")
    link.unlink(missing_ok=True)
    try:
        os.link(source, link)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        atomic.write_atomically(name, lambda sink: _copy(source, sink), is_announced=False)
        return
    try:
        link.replace(name)
    finally:
        with suppress(OSError):
            link.unlink()
    atomic.sync_directory(name.parent)


def _copy(source: Path, sink: atomic.Sink) -> None:
    with source.open("rb") as file:
        while part := file.read(1 << 22):
            sink.write(part)


def _surplus(directory: Path, keep: int) -> list[Path]:
    """Resume points beyond the newest one of each of the newest steps."""
    steps: list[str] = []
    surplus = []
    for path in resume_points(directory):
        step = path.stem.split("-")[1]
        if step in steps or len(steps) == keep:
            surplus.append(path)
        else:
            steps.append(step)
    return surplus
