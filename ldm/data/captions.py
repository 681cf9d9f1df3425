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
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ldm.config import ConfigError
from ldm.data.decoding import reason
from ldm.data.listing import utf8_text
from ldm.data.opening import require_regular
from ldm.data.substitutes import BadSample
from ldm.log import log

__all__ = ["Captions", "decoded", "mentions_a_side", "taken"]

_FILE_COLUMNS = ("file_name", "file", "image")
_TEXT_COLUMNS = ("text", "caption")
_FEW_TEXTS = 3  # fewer `.txt` files may be anything, in any folder

_WITHOUT = "captions: false reads the images alone"


def mentions_a_side(text: str) -> bool:
    """Whether a caption says left or right, and would be wrong about a mirrored image."""
    return re.search(r"\b(left|right)", text, re.IGNORECASE) is not None


def taken(texts: Sequence[str], rng: np.random.Generator, *, is_random: bool) -> str:
    """One of the captions of an image: drawn, or the first."""
    return texts[int(rng.integers(len(texts)))] if is_random else texts[0]


def decoded(content: bytes) -> tuple[str, bool]:
    """A text of usual encoding, and whether that had to be guessed: Windows-1252.

    Raises ValueError for what is no text in any of them, and for one with a zero byte.
    """
    is_marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if is_marked else ("utf-8-sig", "cp1252"):
        with suppress(UnicodeDecodeError):
            text = content.decode(encoding)
            if "\0" not in text:
                return text, encoding == "cp1252"
    raise ValueError("is no text in UTF-8, UTF-16 with its mark, or Windows-1252")


class Captions:
    """The captions of images, by their name relative to the folder.

    Texts of a table are held; a `.txt` is read when asked for. Several lines of a `.txt`, or
    several rows of a table for one image, are alternatives. A `.txt` that is neither UTF-8 nor
    marked as UTF-16 is taken for Windows-1252, which is said once; one that is no text in these is
    a `BadSample`, when it is asked for.
    """

    def __init__(self, root: Path, table: Mapping[str, list[str]], beside: frozenset[str]) -> None:
        self._root, self._table, self._beside = root, table, beside
        self._has_warned = False

    @classmethod
    def find(cls, root: Path, names: list[str], texts: set[str]) -> Captions | None:
        """The captions of the images `names`, or None when there are none.

        texts: names of the folder's `.txt` files without their extension.
        Images without a caption are counted in the log; their caption is empty.
        Raises ConfigError for a table that cannot be understood, and for captions that are those of
        other images: a table none of whose rows names an image, or in which more than half of the
        rows and of the images are without the other, and texts that all lie elsewhere.
        """
        path = _table_path(root)
        table = _read_table(path) if path else {}
        stems = {name: name.rpartition(".")[0] for name in names}
        beside = frozenset(stem for name, stem in stems.items() if stem in texts)
        covered = sum(name in table or stems[name] in beside for name in names)
        if path:
            _require_match(path, table, names, covered)
        if not covered:
            _require_no_match(root, names, texts)
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
        try:
            require_regular(path)
            text, is_guessed = decoded(path.read_bytes())
        except (OSError, ValueError) as error:
            raise BadSample(str(path), f"its caption: {reason(error)}") from None
        if is_guessed and not self._has_warned:
            log.warning("%s: is not UTF-8; it and others like it are read as cp1252", path)
            self._has_warned = True
        return text


def _require_match(
    path: Path, table: Mapping[str, Any], names: Sequence[str], covered: int
) -> None:
    """ConfigError for a table of other images; tell how many of its rows are.

    covered: images with a caption. A table of more images than there are is none of others, nor is
    one of some of them.
    """
    if not table:
        raise ConfigError(f"{path}: has no rows; expected file_name and text ({_WITHOUT})")
    known = set(names)
    alone = [name for name in table if name not in known]
    is_foreign = 2 * len(alone) > len(table) and 2 * covered < len(names)
    if is_foreign or len(alone) == len(table):
        raise ConfigError(
            f"{path}: {len(alone)} of {len(table)} names in it are of no image below "
            f"{path.parent}: it has, e.g., {alone[0]!r}, the folder {names[0]!r}; expected "
            f"file_name relative to it ({_WITHOUT})"
        )
    if alone:
        log.warning(
            "%s: %d of %d rows name no image below it, e.g. %s",
            path,
            len(alone),
            len(table),
            alone[0],
        )


def _require_no_match(root: Path, names: Sequence[str], texts: Collection[str]) -> None:
    """ConfigError for texts none of which lies beside an image, though they seem to be captions.

    They do where one has the name of an image elsewhere, or where there are half as many.
    """
    images = {PurePosixPath(name).stem: name for name in names}
    same = next((text for text in sorted(texts) if PurePosixPath(text).name in images), None)
    if same is None and (len(texts) < _FEW_TEXTS or 2 * len(texts) < len(names)):
        return
    text = same or min(texts)
    image = images[PurePosixPath(text).name] if same else names[0]
    raise ConfigError(
        f"{root}: none of its {len(texts)} .txt files lies beside an image of its name: there is, "
        f"e.g., {text}.txt, and the image {image}; expected {image.rpartition('.')[0]}.txt for its "
        f"caption ({_WITHOUT})"
    )


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
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}, line {number}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ConfigError(f"{path}, line {number}: expected an object with file_name and text")
    return row
