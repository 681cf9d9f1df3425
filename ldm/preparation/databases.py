"""LSUN's databases: LMDB, from a key to the bytes of an image file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.config import ConfigError
from ldm.preparation.record import Record

if TYPE_CHECKING:
    import lmdb

__all__ = ["database_entries", "database_file", "database_records"]

_DIRECTORY = 3  # characters of a key that name its directory: 4096 of them where keys are hashes


def database_file(source: Path) -> Path:
    """The file that holds a database given as a file or as the directory around `data.mdb`.

    Raises ConfigError for a directory without it, and for the zip that LSUN publishes.
    """
    file = source / "data.mdb" if source.is_dir() else source
    if file.suffix == ".zip":
        raise ConfigError(f"SOURCE: {source} is a zip; expected the database in it: unzip it first")
    if not file.is_file():
        raise ConfigError(f"SOURCE: {source} holds no data.mdb; expected a database of LSUN")
    return file


def database_entries(file: Path) -> int:
    """How many images a database holds."""
    with _opened(file) as database:
        return int(database.stat()["entries"])


def database_records(file: Path) -> Iterator[Record]:
    """The images of a database, `abc/abcdef.webp` of the key `abcdef`; bytes as they are.

    Directories by the first three characters of the keys, as millions of files would otherwise lie
    in one.
    """
    with _opened(file) as database, database.begin(buffers=True) as transaction:
        for key, value in transaction.cursor():
            try:
                text = bytes(key).decode("ascii")
            except UnicodeDecodeError:
                raise ConfigError(f"{file}: the key {bytes(key)!r}; expected ASCII") from None
            name = f"{text[:_DIRECTORY]}/{text}.webp"
            # the view is of the file in memory: nothing is read until its bytes are asked for
            yield Record(name, partial(bytes, value), len(value))


@contextmanager
def _opened(file: Path) -> Iterator[lmdb.Environment]:
    try:
        import lmdb
    except ImportError as error:
        raise ConfigError(
            "LSUN's databases need a package that is not installed: pip install lmdb"
        ) from error
    try:
        # without its lock file the directory may be read-only
        database = lmdb.open(str(file), subdir=False, readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise ConfigError(f"{file}: is not a database of LSUN, or damaged: {error}") from error
    try:
        with database:
            yield database
    except lmdb.Error as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error
