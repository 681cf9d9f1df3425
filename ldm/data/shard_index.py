"""What lies where in a tar of samples, so that each can be read by itself.

A shard is a plain tar in webdataset's form: members that follow each other and share a name up to
the first dot of their file's, their key, are one sample.

    000000007.jpg     the image, of any extension that a folder of images may have
    000000007.txt     its caption; several lines are alternatives
    000000007.json    or the caption, as `caption` or `text`
"""

from __future__ import annotations

import json
import os
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from webdataset.tariterators import group_by_keys  # type: ignore[import-untyped]

from ldm.data.captions import decoded
from ldm.data.decoding import EXTENSIONS, UNREADABLE, reason
from ldm.data.listing import position
from ldm.data.opening import opened
from ldm.data.substitutes import printable
from ldm.hashing import hash64
from ldm.log import log

__all__ = ["SAMPLE", "ShardIndex", "index_of", "part_of", "texts_of"]

# one sample: places in the tar in bytes, the image's size in pixels, the key's place in [0, 1)
SAMPLE = np.dtype(
    [
        ("image_at", np.int64),
        ("image_size", np.int64),
        ("caption_at", np.int64),
        ("caption_size", np.int64),  # 0 without a caption
        ("is_json", np.bool_),
        ("width", np.int32),
        ("height", np.int32),
        ("position", np.float64),
    ]
)

_VERSION = 1  # of the stored index: another one is made anew
_MAX_JSON = 1 << 20  # bytes: longer ones are no description of an image


@dataclass(frozen=True)
class ShardIndex:
    """The samples of a tar that have an image.

    names: (N,) bytes, of the image's members.  samples: (N,) of `SAMPLE`.
    problems: what cannot be used, each with its reason: samples without an image that can be
    opened, and a tar that ends too early.
    """

    path: Path
    names: NDArray[np.bytes_]
    samples: NDArray[np.void]
    problems: list[str]


def index_of(path: Path, directory: Path | None = None) -> ShardIndex:
    """The index of a tar: the one that was stored, or a new one, which is stored.

    directory: where it is stored, by default beside the tar, and where that cannot be written, in
    `$XDG_CACHE_HOME/ldm/shards`. A stored one counts as long as size and time of the tar are those
    that it was made of. Raises OSError for a tar that cannot be read at all.
    """
    status = path.stat()
    stamp = np.array([_VERSION, status.st_size, status.st_mtime_ns])
    places = _places(path, directory)
    for place in places:
        found = _stored(place, stamp, path)
        if found is not None:
            return found
    index = _made(path, status.st_size)
    for place in places:
        try:
            _store(place, stamp, index)
        except OSError:
            continue
        return index
    log.warning("%s: its index cannot be stored in %s", path, places[-1].parent)
    return index


def part_of(path: Path, start: int, size: int) -> bytes:
    """So many bytes of a file; OSError where it ends before."""
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        content = file.read(size)
    if len(content) < size:
        raise OSError(f"{path} ends too early")
    return content


def texts_of(content: bytes, *, is_json: bool) -> list[str]:
    """The captions in a `.txt`, one to a line, or in a `.json`; none where there are none.

    Raises ValueError for a `.txt` that is no text.
    """
    if not is_json:
        return [line.strip() for line in decoded(content)[0].splitlines() if line.strip()]
    try:
        row = json.loads(content)
    except (ValueError, RecursionError):
        return []
    texts = [row.get(key) for key in ("caption", "text")] if isinstance(row, dict) else []
    return [text.strip() for text in texts if isinstance(text, str) and text.strip()][:1]


def _places(path: Path, directory: Path | None) -> list[Path]:
    """Where the index of a tar may be stored, in the order in which that is tried."""
    distinct = f"{path.name}.{hash64(os.fsencode(path.resolve())):016x}.index.npz"
    if directory is not None:
        return [directory / distinct]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return [path.with_name(f"{path.name}.index.npz"), cache / "ldm" / "shards" / distinct]


def _stored(place: Path, stamp: NDArray[np.int64], path: Path) -> ShardIndex | None:
    """A stored index, None when it is of another tar, damaged, or not there."""
    try:
        with place.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if not np.array_equal(stored["stamp"], stamp):
                return None
            names, samples, problems = (stored[key] for key in ("names", "samples", "problems"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return ShardIndex(path, names, samples, problems.tolist()) if samples.dtype == SAMPLE else None


def _store(place: Path, stamp: NDArray[np.int64], index: ShardIndex) -> None:
    """Write an index at once, so that no process sees a part of it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            problems = np.array(index.problems, dtype=np.str_)
            np.savez(file, stamp=stamp, names=index.names, samples=index.samples, problems=problems)
        draft.replace(place)
    finally:
        draft.unlink(missing_ok=True)


def _made(path: Path, size: int) -> ShardIndex:
    """The index of a tar, from its members' headers and those of its images."""
    problems: list[str] = []
    names, rows = [], []

    def told(error: Exception) -> bool:
        """A member that webdataset's grouping does not take: said, and left out."""
        problems.append(str(error.args[0]))
        return True

    try:
        with tarfile.open(path, "r:") as archive:
            members = _members(archive, path, size, problems)
            for sample in group_by_keys(members, handler=told):
                found = _sample(archive, sample)
                if isinstance(found, str):
                    problems.append(f"{printable(sample['__key__'])}: {found}")
                else:
                    names.append(found[0])
                    rows.append(found[1])
    except tarfile.TarError as error:
        problems.append(f"is no plain tar: {error}")
    listed = np.array(names, dtype=np.bytes_) if names else np.zeros(0, "S1")
    return ShardIndex(path, listed, np.array(rows, dtype=SAMPLE), problems)


def _members(
    archive: tarfile.TarFile, path: Path, size: int, problems: list[str]
) -> Iterator[dict[str, Any]]:
    """The files of a tar in their order; where it ends too early, those before."""
    count = 0
    try:
        for member in archive:
            if member.offset_data + member.size > size:
                raise tarfile.ReadError("unexpected end of data")
            count += 1
            if not member.isreg():
                continue  # links, devices and pipes lead elsewhere
            if _leads_out(member.name):
                problems.append(f"{printable(member.name)}: its name leads out of the tar")
                continue
            yield {"fname": member.name, "data": member, "__url__": str(path)}
        if archive.offset + tarfile.BLOCKSIZE > size:
            raise tarfile.ReadError("has no end mark")
    except tarfile.TarError as error:
        problems.append(f"ends too early, behind {count} members: {error}")


def _leads_out(name: str) -> bool:
    """Whether a member's name, taken as a path, would lie outside of a directory."""
    return name.startswith("/") or ".." in name.split("/")


def _sample(
    archive: tarfile.TarFile, sample: Mapping[str, Any]
) -> tuple[bytes, tuple[Any, ...]] | str:
    """The image's name and a row of `SAMPLE`, or why there is none."""
    image = next((sample[each] for each in sample if f".{each}" in EXTENSIONS), None)
    if image is None:
        files = [each for each in sample if not each.startswith("__")]
        return f"has no image, only {', '.join(files)}"
    try:
        with archive.extractfile(image) as file, opened(file) as picture:  # type: ignore[union-attr]
            width, height = picture.size
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the disk's fault, not the image's, and nothing to keep in an index
        return reason(error)
    try:
        caption, is_json = _caption(archive, sample)
    except ValueError as error:
        return f"its caption: {error}"
    at, size = (caption.offset_data, caption.size) if caption else (0, 0)
    name = os.fsencode(image.name)
    place = position(sample["__key__"].rpartition("/")[2])
    return name, (image.offset_data, image.size, at, size, is_json, width, height, place)


def _caption(
    archive: tarfile.TarFile, sample: Mapping[str, Any]
) -> tuple[tarfile.TarInfo | None, bool]:
    """The member that holds the caption of a sample, and whether it is JSON."""
    for extension, is_json in (("txt", False), ("json", True)):
        member = sample.get(extension)
        if member is None or member.size > _MAX_JSON:
            continue
        file = archive.extractfile(member)
        if file is not None and texts_of(file.read(), is_json=is_json):
            return member, is_json
    return None, False
