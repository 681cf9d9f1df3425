"""Captions of image files: a `.txt` beside each image, or one table for the folder.

A table is `metadata.csv`, `metadata.jsonl`, or the only `.jsonl` file of the folder, with the
columns `file_name` (relative to the folder) and `text`.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ldm.config import ConfigError
from ldm.data.listing import utf8_text
from ldm.log import log

__all__ = ["Captions", "mentions_a_side"]

_FILE_COLUMNS = ("file_name", "file", "image")
_TEXT_COLUMNS = ("text", "caption")


def mentions_a_side(text: str) -> bool:
    """Whether a caption says left or right, and would be wrong about a mirrored image."""
    return re.search(r"\b(left|right)", text, re.IGNORECASE) is not None


class Captions:
    """The captions of images, by their name relative to the folder.

    Texts of a table are held; a `.txt` is read when asked for. Several lines of a `.txt`, or
    several rows of a table for one image, are alternatives. A `.txt` that is neither UTF-8 nor
    marked as UTF-16 is taken for Windows-1252, which is said once.
    """

    def __init__(self, root: Path, table: Mapping[str, list[str]], beside: frozenset[str]) -> None:
        self._root, self._table, self._beside = root, table, beside
        self._has_warned = False

    @classmethod
    def find(cls, root: Path, names: list[str], texts: set[str]) -> Captions | None:
        """The captions of the images `names`, or None when there are none.

        texts: names of the folder's `.txt` files without their extension.
        Images without a caption are counted in the log; their caption is empty.
        Raises ConfigError for a table that cannot be understood.
        """
        path = _table_path(root)
        table = _read_table(path) if path else {}
        stems = {name: name.rpartition(".")[0] for name in names}
        beside = frozenset(stem for name, stem in stems.items() if stem in texts)
        covered = sum(name in table or stems[name] in beside for name in names)
        unknown = len(table.keys() - stems.keys())
        if path and unknown:
            log.warning("%s: %d of %d rows name no image below it", path, unknown, len(table))
        if not covered:
            return None
        if covered < len(names):
            missing = len(names) - covered
            log.warning("%s: %d of %d images have no caption", root, missing, len(names))
        return cls(root, table, beside)

    def of(self, name: str) -> list[str]:
        """The alternatives for an image, at least one; [""] when it has no caption."""
        lines = self._table.get(name, [])
        stem = name.rpartition(".")[0]
        if not lines and stem in self._beside:
            text = self._text_of(self._root / f"{stem}.txt")
            lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines or [""]

    def _text_of(self, path: Path) -> str:
        content = path.read_bytes()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return content.decode("utf-16", errors="replace")
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError:
            if not self._has_warned:
                log.warning("%s: is not UTF-8; it and others like it are read as cp1252", path)
                self._has_warned = True
            return content.decode("cp1252", errors="replace")


def _table_path(root: Path) -> Path | None:
    named = [root / "metadata.csv", root / "metadata.jsonl"]
    found = [path for path in named if path.is_file()] or sorted(root.glob("*.jsonl"))
    if len(found) > 1:
        raise ConfigError(
            f"{root}: {' and '.join(path.name for path in found)} could each be the table of "
            "captions; expected one of them, or metadata.jsonl alone"
        )
    return found[0] if found else None


def _read_table(path: Path) -> dict[str, list[str]]:
    table = defaultdict(list)
    for line, row in _rows(path):
        name, text = (
            next((row[column] for column in columns if row.get(column) is not None), None)
            for columns in (_FILE_COLUMNS, _TEXT_COLUMNS)
        )
        if name is None or text is None:
            raise ConfigError(
                f"{path}, line {line}: has {', '.join(map(str, row)) or 'nothing'}; "
                "expected the columns file_name and text"
            )
        for value in (name, text):
            if not isinstance(value, str):
                raise ConfigError(f"{path}, line {line}: {value!r}; expected a text")
        table[name.replace("\\", "/").removeprefix("./")].append(text.strip())
    return dict(table)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = io.StringIO(utf8_text(path))
    if path.suffix == ".csv":
        reader = csv.DictReader(lines)
        try:
            yield from ((reader.line_num, row) for row in reader)
        except csv.Error as error:
            raise ConfigError(f"{path}, line {reader.line_num + 1}: not CSV: {error}") from None
        return
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, _json_object(line, path, number)


def _json_object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {number}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ConfigError(f"{path}, line {number}: expected an object with file_name and text")
    return row
