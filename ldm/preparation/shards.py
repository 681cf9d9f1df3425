"""Samples as tar shards in the form of webdataset: key.jpg, key.txt and key.json of each."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from ldm.config import ConfigError
from ldm.data.decoding import UNREADABLE
from ldm.log import log
from ldm.preparation.chunk import chunks
from ldm.preparation.downloads import NOT_ON_DISK, Downloads, Found, Row
from ldm.preparation.header import upright_header_size
from ldm.preparation.journal import write_whole

__all__ = ["Filters", "Shard", "ShardTable", "write_shard"]

_READ_AHEAD = 64  # images that are in memory at once
_NAMED = 5  # images in one message


@dataclass(frozen=True)
class Filters:
    """What a sample must be to be kept; None asks for nothing.

    min_side: of the shorter side, in pixels.  max_aspect: longer side over shorter.
    min_similarity: cosine of image and caption under CLIP.
    max_unsafe, max_watermark: probabilities (`punsafe`, `pwatermark`).

    A sample that lacks the number that it is judged by is left out.
    """

    min_side: int | None = None
    max_aspect: float | None = None
    min_similarity: float | None = None
    max_unsafe: float | None = None
    max_watermark: float | None = None

    def against_facts(self, facts: Row) -> str | None:
        """Why a sample is left out by what is said about it; None when it is kept."""
        limits = (
            ("similarity", self.min_similarity, 1),
            ("punsafe", self.max_unsafe, -1),
            ("pwatermark", self.max_watermark, -1),
        )
        for name, limit, sign in limits:
            if limit is None:
                continue
            value = facts.get(name)
            if not isinstance(value, int | float):
                return f"no {name}"
            if sign * value < sign * limit:
                return name
        return None

    def against_size(self, width: int, height: int) -> str | None:
        """Why an image of this size is left out; None when it is kept."""
        short, long = min(width, height), max(width, height)
        if self.min_side is not None and short < self.min_side:
            return "too small"
        if self.max_aspect is not None and long > self.max_aspect * short:
            return "too long"
        return None


@dataclass
class Shard:
    """What became of the rows of a shard.

    rows: how many there were.  samples: how many are kept.  left_out: the others, by reason.
    missing: key or URL of the first images that are not on disk.
    bytes, sha256: of the file; 0 and empty where nothing is kept, as there is none then.
    """

    name: str
    rows: int = 0
    samples: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)
    bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class _Sample:
    key: str
    extension: str
    image: bytes
    caption: str
    facts: Row


def write_shard(
    name: str,
    rows: Sequence[Found],
    downloads: Downloads,
    filters: Filters,
    file: IO[bytes],
    *,
    pool: ThreadPoolExecutor,
    told: Callable[[int], object] = lambda count: None,
) -> Shard:
    """Write what is kept of some rows as a tar: key.jpg, key.txt and key.json of each.

    Images are copied as they are. The same rows and images give the same bytes.
    told: is called with the number of rows that were dealt with.
    """
    shard, hashed = Shard(name, rows=len(rows)), _Hashed(file)
    with tarfile.open(fileobj=hashed, mode="w|") as tar:  # type: ignore[call-overload]
        for some in chunks(rows, _READ_AHEAD):
            samples = pool.map(partial(_sample, downloads, filters), some)
            for each, sample in zip(some, samples, strict=True):
                if isinstance(sample, _Sample):
                    shard.samples += 1
                    _add(tar, sample)
                else:
                    shard.left_out[sample] += 1
                    if sample == NOT_ON_DISK and len(shard.missing) < _NAMED:
                        shard.missing.append(str(each.row.get("url", each.row.get("key"))))
            told(len(some))
    shard.bytes, shard.sha256 = hashed.size, hashed.digest.hexdigest()
    return shard


def _sample(downloads: Downloads, filters: Filters, found: Found) -> _Sample | str:
    """The sample of a row, or why it is left out."""
    row, name = found.row, found.name
    if name is None:
        return found.why
    facts = {**downloads.facts(name), **row}
    caption = downloads.caption(name) or facts.get("caption") or facts.get("text") or ""
    caption = " ".join(str(caption).split())
    if not caption:
        return "no caption"
    why = filters.against_facts(facts)
    if why:
        return why
    try:
        image = (downloads.root / name).read_bytes()
        width, height = upright_header_size(io.BytesIO(image))
    except UNREADABLE:
        return "damaged"
    why = filters.against_size(width, height)
    if why:
        return why
    path = Path(name)
    # a dot would end the key
    key = path.stem.replace(".", "_")
    facts |= {"key": key, "caption": caption, "width": width, "height": height}
    return _Sample(key, path.suffix.lower(), image, caption, facts)


def _add(tar: tarfile.TarFile, sample: _Sample) -> None:
    facts = json.dumps(sample.facts, ensure_ascii=False, sort_keys=True, default=str)
    parts: Iterable[tuple[str, bytes]] = (
        (sample.extension, sample.image),
        (".txt", sample.caption.encode("utf-8", "replace")),
        (".json", facts.encode("utf-8", "replace")),
    )
    for extension, content in parts:
        info = tarfile.TarInfo(sample.key + extension)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))


class _Hashed:
    """A file that knows the length and SHA-256 of what was written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.size, self.digest = file, 0, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.size += len(content)
        self.digest.update(content)
        return self._file.write(content)


class ShardTable:
    """What became of every shard, in a JSON file that is written anew after each of them.

    goes_on: take over what the file says; otherwise it begins empty.
    """

    def __init__(self, path: Path, *, goes_on: bool) -> None:
        self._path = path
        self._shards: dict[str, Shard] = {}
        if goes_on and path.is_file():
            try:
                rows = json.loads(path.read_text(encoding="utf-8"))["shards"]
                shards = [Shard(**{**row, "left_out": Counter(row["left_out"])}) for row in rows]
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{path}: expected the table that was written here") from error
            self._shards = {shard.name: shard for shard in shards}

    def is_whole(self, name: str) -> bool:
        """Whether a shard was written and is there, or was found to be empty."""
        shard = self._shards.get(name)
        if shard is None:
            return False
        path = self._path.with_name(name)
        return not shard.samples or (path.is_file() and path.stat().st_size == shard.bytes)

    def add(self, shard: Shard, written: Path) -> None:
        """Give a written file the name of its shard, and note what is in it."""
        if shard.samples:
            os.replace(written, self._path.with_name(shard.name))
        else:
            written.unlink()
            shard.bytes, shard.sha256 = 0, ""
        self._shards[shard.name] = shard
        shards = list(self._shards.values())
        content = {
            "rows": sum(each.rows for each in shards),
            "samples": self.num_samples,
            "left_out": self._left_out(),
            "shards": list(map(vars, shards)),
        }
        text = json.dumps(content, indent=1, ensure_ascii=False)
        write_whole(self._path, f"{text}\n".encode("utf-8", "replace"))

    @property
    def num_samples(self) -> int:
        """Samples of all shards."""
        return sum(shard.samples for shard in self._shards.values())

    def _left_out(self) -> Counter[str]:
        return sum((shard.left_out for shard in self._shards.values()), Counter())

    def tell(self) -> None:
        """Log how many samples there are, and why how many are left out."""
        shards = list(self._shards.values())
        num_rows, num_shards = sum(shard.rows for shard in shards), len(shards)
        log.info(
            "%s: %d samples of %d rows, %d shards",
            self._path,
            self.num_samples,
            num_rows,
            num_shards,
        )
        for why, number in self._left_out().most_common():
            log.info("  left out: %d, %s", number, why)
        missing = [name for shard in shards for name in shard.missing][:_NAMED]
        if missing:
            log.warning("  not on disk, and not fetched: %s", ", ".join(missing))
