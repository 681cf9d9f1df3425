"""The files in a zip, a tar or a directory, one after the other."""

from __future__ import annotations

import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from ldm.config import ConfigError, nearest_path
from ldm.preparation.record import Record

__all__ = ["existing_source", "is_hidden", "is_listed", "members", "members_of_tars"]

_ZIP_ENDINGS = (".zip",)
_TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_LARGEST = 2**31  # bytes of a file that is read whole
# of damaged archives; RuntimeError of encrypted ones and unknown compressions
_UNREADABLE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
)


def existing_source(path: str | Path, expected: str, *, key: str = "SOURCE") -> Path:
    """A file or directory that exists; otherwise ConfigError names the flag and what it is for."""
    found = Path(path).expanduser()
    if found.exists():
        return found
    near = nearest_path(found.absolute())
    hint = f"; did you mean {near}?" if near else ""
    raise ConfigError(f"{key}: there is no {found}{hint}; expected {expected}")


def is_hidden(name: str) -> bool:
    """Whether a file or a directory above it is of the kind that systems leave behind."""
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def is_listed(source: Path) -> bool:
    """Whether the names in a source are known without reading through all of it: no tar's are."""
    return source.is_dir() or not source.name.lower().endswith(_TAR_ENDINGS)


def members(source: Path) -> Iterator[Record]:
    """The files of a zip, a tar (also compressed) or a directory, under the names they have there.

    In the archive's order, those of a directory sorted. Directories, links and hidden files are
    left out. Raises ConfigError for a file of another kind and for a damaged one.
    """
    name = source.name.lower()
    if source.is_dir():
        yield from _of_directory(source)
    elif name.endswith(_ZIP_ENDINGS):
        yield from _of_zip(source)
    elif name.endswith(_TAR_ENDINGS):
        yield from _of_tar(source)
    else:
        endings = " ".join((*_ZIP_ENDINGS, *_TAR_ENDINGS))
        raise ConfigError(f"SOURCE: {source}; expected a directory, or an archive: {endings}")


def _of_directory(root: Path) -> Iterator[Record]:
    for directory, subdirectories, files in os.walk(root):
        subdirectories.sort()
        for file in sorted(files):
            path = Path(directory, file)
            name = path.relative_to(root).as_posix()
            if not is_hidden(name) and path.is_file():
                yield Record(name, partial(_content_of_file, path), path.stat().st_size)


def _of_zip(source: Path) -> Iterator[Record]:
    with _readable(source), zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            name = info.filename.removeprefix("./")
            if not info.is_dir() and not is_hidden(_inside(name)):
                yield Record(name, partial(_content_in_zip, archive, info), info.file_size)


def _of_tar(source: Path) -> Iterator[Record]:
    with _readable(source), tarfile.open(source) as archive:
        yield from _records(archive)


def members_of_tars(source: Path) -> Iterator[Record]:
    """The files of the tars in a tar or a directory, each below the name of its tar.

    `n01440764.tar` with `n01440764_18.JPEG` in it gives `n01440764/n01440764_18.JPEG`. Other files
    are left out. Raises ConfigError for a damaged tar.
    """
    if source.is_dir():
        for path in sorted(source.glob("*.tar")):
            yield from _below(path.stem, _of_tar(path))
        return
    with _readable(source), tarfile.open(source) as outer:
        for info in _entries(outer):
            file = outer.extractfile(info) if info.name.endswith(".tar") else None
            if file is not None:
                with _readable(source, info.name), tarfile.open(fileobj=file) as inner:
                    yield from _below(Path(info.name).stem, _records(inner))


def _below(directory: str, records: Iterator[Record]) -> Iterator[Record]:
    for record in records:
        yield replace(record, name=f"{directory}/{record.name}")


def _records(archive: tarfile.TarFile) -> Iterator[Record]:
    for info in _entries(archive):
        yield Record(
            info.name.removeprefix("./"), partial(_content_in_tar, archive, info), info.size
        )


def _entries(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (info := archive.next()) is not None:
        # the archive keeps what it has seen: of millions of files, gigabytes
        archive.members = []  # type: ignore[attr-defined]
        if info.isreg() and not is_hidden(_inside(info.name.removeprefix("./"))):
            yield info


def _inside(name: str) -> str:
    """A name without the parts that would lead out, which are not hidden but refused."""
    return "/".join(part for part in name.split("/") if part != "..")


def _content_of_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _require_sane(source: str, name: str, size: int) -> None:
    """Refuse what would not fit into memory: a few bytes of an archive may become any number."""
    if size > _LARGEST:
        raise ConfigError(
            f"{source}: {name}: refused, of {size} bytes; expected {_LARGEST} at most"
        )


def _content_in_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    _require_sane(str(archive.filename), info.filename, info.file_size)
    with _readable(Path(archive.filename or ""), info.filename):
        return archive.read(info)


def _content_in_tar(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    _require_sane(str(archive.name), info.name, info.size)
    with _readable(Path(str(archive.name)), info.name):
        file = archive.extractfile(info)
        content = b"" if file is None else file.read()
        if len(content) != info.size:
            raise tarfile.ReadError("it ends early")
        return content


@contextmanager
def _readable(source: Path, name: str | None = None) -> Iterator[None]:
    """What an archive raises when it is damaged, as one ConfigError that names it."""
    try:
        yield
    except _UNREADABLE as error:
        where = f"{source}: {name}" if name else str(source)
        raise ConfigError(f"{where}: cannot be read from the archive: {error}") from error
