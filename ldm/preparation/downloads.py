"""Images that were downloaded with their captions, and the tables of what was to be downloaded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.config import ConfigError
from ldm.data.listing import list_files

__all__ = [
    "NOT_ON_DISK",
    "Downloads",
    "Found",
    "Row",
    "num_rows",
    "rows_of_downloads",
    "rows_of_tables",
]

Row = Mapping[str, Any]  # what a table says about an image, names in lower case

# columns that are kept, of LAION's tables and of the downloader's
_COLUMNS = (
    *("key", "url", "caption", "text", "similarity", "punsafe", "pwatermark", "nsfw", "license"),
    *("aesthetic", "aesthetic_score", "sample_id", "hash", "original_width", "original_height"),
)
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
_ROWS = 4096  # that are in memory as a table at once


NOT_ON_DISK = "not on disk"


@dataclass(frozen=True)
class Found:
    """A row and the file of its image, or why it has none."""

    row: Row
    name: str | None
    why: str = ""


class Downloads:
    """The images below a directory, as a downloader left them.

    00000/000000001.jpg, with its caption in 000000001.txt and facts in 000000001.json, both
    optional. An image is known by its key, its name without directories and extension.

    Raises ConfigError when there are none, or two of one key.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names: dict[str, str] = {}
        for name in list_files(root, _ENDINGS)[0]:
            key = Path(name).stem
            if key in self.names:
                raise ConfigError(
                    f"{root}: {self.names[key]} and {name} have one key; expected images of "
                    "different names, in any directories"
                )
            self.names[key] = name
        self._by_url: dict[str, str] | None = None

    def found(self, rows: Iterable[Row]) -> Iterator[Found]:
        """The rows with the files of their images; an image is that of the first of its rows."""
        taken: set[str] = set()
        for row in rows:
            name = self._name_of(row)
            if name is None:
                yield Found(row, None, NOT_ON_DISK)
            elif name in taken:
                yield Found(row, None, "of an image that an earlier row has")
            else:
                taken.add(name)
                yield Found(row, name)

    def _name_of(self, row: Row) -> str | None:
        """The file of a row, by its key or else its URL; None when it is not there."""
        if "key" in row:
            return self.names.get(str(row["key"]))
        if self._by_url is None:
            facts = ((name, self.facts(name)) for name in self.names.values())
            self._by_url = {str(each["url"]): name for name, each in facts if each.get("url")}
            if not self._by_url:
                raise ConfigError(
                    f"{self.root}: its images cannot be found in the table, which has URLs only; "
                    "expected a column key, or a .json with a url beside each image"
                )
        return self._by_url.get(str(row.get("url")))

    def facts(self, name: str) -> dict[str, Any]:
        """What the `.json` beside an image says, its names in lower case."""
        path = (self.root / name).with_suffix(".json")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return _known(found)
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"{path}: expected facts about an image in JSON: {error}") from error

    def caption(self, name: str) -> str | None:
        """The text beside an image; None when there is none."""
        path = (self.root / name).with_suffix(".txt")
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None


def _known(row: Row) -> dict[str, Any]:
    """The columns that are kept, by their names in lower case, without empty ones and NaN."""
    lower = {name.lower(): value for name, value in row.items()}
    return {name: lower[name] for name in _COLUMNS if _is_said(lower.get(name))}


def _is_said(value: object) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def rows_of_downloads(downloads: Downloads) -> Iterator[Row]:
    """A row for each image, where there is no table: what is known is beside the images."""
    return ({"key": key} for key in downloads.names)


def rows_of_tables(tables: Sequence[Path]) -> Iterator[Row]:
    """The rows of Parquet files, one file after the other, as a stream.

    Raises ConfigError when pyarrow is missing, a file is damaged, or has neither keys nor URLs.
    """
    for path in tables:
        with _opened(path) as table:
            found = table.schema_arrow.names
            names = [name for name in found if name.lower() in _COLUMNS]
            if not {"key", "url"}.intersection(name.lower() for name in names):
                raise ConfigError(f"{path}: has {', '.join(found)}; expected a column key or url")
            for batch in table.iter_batches(batch_size=_ROWS, columns=names):
                yield from map(_known, batch.to_pylist())


def num_rows(tables: Sequence[Path]) -> int:
    """How many rows the tables have; raises ConfigError as `rows_of_tables` does."""
    total = 0
    for path in tables:
        with _opened(path) as table:
            total += table.metadata.num_rows
    return total


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A Parquet file; what is wrong with it is one ConfigError that names it."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(
            f"{path}: needs pyarrow: pip install 'pyarrow>=18', or the extra `prepare`"
        ) from None
    try:
        with parquet.ParquetFile(path) as table:
            yield table
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as Parquet: {error}") from error
