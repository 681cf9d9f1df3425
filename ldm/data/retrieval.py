"""Neighbours of images in a database, for retrieval-augmented models (arXiv:2204.11824).

An index is a safetensors file that scripts/build_index.py writes:

    embeddings            (M, D) float16, of length 1: the images of the database
    names                 (bytes,) uint8: their names, UTF-8, each ended by a line feed
    neighbours.SPLIT      (N, K) int32: rows of the K nearest of each item, the nearest first
    keys.SPLIT            (N,) int64: which item it was, see `key_of`

and the SHA-256 of the CLIP that embedded them in its metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ldm.config import ConfigError, did_you_mean
from ldm.data.listing import existing_file
from ldm.data.mapped import mapped_arrays
from ldm.data.wrapped import Wrapped
from ldm.hashing import hash64
from ldm.ranges import Positive
from ldm.spelling import require_known

__all__ = ["Index", "Neighbours", "Table", "key_of", "name_key", "names_of", "nearest_rows"]

Choice = Literal["nearest", "random"]

_PROBED = 4096  # names of a data set that are looked up in the beginning, evenly spread
_PROBED_ITEMS = 4  # items that are read and looked at where there are no names
_ROWS = 8192  # of the database that are compared at a time
_HALF = 1 << 63


def name_key(name: str) -> int:
    """The key of an item by its name, a signed 64-bit number."""
    return hash64(name.encode("utf-8", "surrogateescape")) - _HALF


def key_of(item: Mapping[str, Any]) -> int:
    """Which item it is: by its `relpath`, or where it has none by the pixels of its `image`.

    Raises ConfigError for an item with neither.
    """
    if "relpath" in item:
        return name_key(item["relpath"])
    if "image" in item:
        return hash64(np.ascontiguousarray(item["image"]).tobytes()) - _HALF
    raise ConfigError(f"items have neither relpath nor image, only {', '.join(sorted(item))}")


@torch.no_grad()
def nearest_rows(
    queries: Tensor, database: NDArray[Any], k: int, *, own: Tensor | None = None
) -> Tensor:
    """The rows (B, k) of a database that have the largest cosines with queries, largest first.

    queries: (B, D), of any length.  database: (M, D), k of it or more; may be memory-mapped.
    own: (B,) rows that do not count, as each is the query itself.
    Exact: every row is compared, in float32 on the queries' device.
    """
    queries = F.normalize(queries.float(), dim=1)
    best = queries.new_full((len(queries), 0), -torch.inf)
    rows = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start in range(0, len(database), _ROWS):
        block = torch.from_numpy(np.array(database[start : start + _ROWS])).to(queries.device)
        cosines = queries @ F.normalize(block.float(), dim=1).T
        here = torch.arange(start, start + len(block), device=queries.device)
        if own is not None:
            cosines = cosines.masked_fill(here == own.to(queries.device)[:, None], -torch.inf)
        best = torch.cat([best, cosines], dim=1)
        rows = torch.cat([rows, here.expand(len(queries), -1)], dim=1)
        best, places = best.topk(min(k, best.shape[1]), dim=1)
        rows = rows.gather(1, places)
    return rows


@dataclass(frozen=True)
class Table:
    """The neighbours of the items of one data set: (N, K) rows, and (N,) keys of the items."""

    neighbours: NDArray[np.int32]
    keys: NDArray[np.int64]

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.argsort(self.keys, kind="stable")

    @cached_property
    def _sorted(self) -> NDArray[np.int64]:
        return np.asarray(self.keys)[self._order]

    def rows_of(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where items are in the table, (n,); -1 for those that are not."""
        places = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        return np.where(self._sorted[places] == keys, self._order[places], -1)


@dataclass(frozen=True)
class Index:
    """A database of embeddings, and the neighbours in it of one or more data sets.

    path: its file.  embeddings: (M, D).  tables: by the name of the split.
    metadata: `clip`, the SHA-256 of what embedded them, and `database`, where they were.
    """

    path: Path
    embeddings: NDArray[Any]
    tables: Mapping[str, Table]
    metadata: Mapping[str, str]
    _names: NDArray[np.uint8]

    @staticmethod
    def read(path: str | Path) -> Index:
        """The index of a file, memory-mapped; ConfigError for a file that is none."""
        path = existing_file(path, key="index", expected="one of scripts/build_index.py")
        arrays, metadata = mapped_arrays(path)
        if not {"embeddings", "names"} <= arrays.keys() or "clip" not in metadata:
            held = ", ".join(sorted(arrays)) or "nothing"
            raise ConfigError(
                f"index: {path} holds {held}; expected an index of scripts/build_index.py"
            )
        splits = [name.removeprefix("keys.") for name in arrays if name.startswith("keys.")]
        tables = {
            split: Table(arrays[f"neighbours.{split}"], arrays[f"keys.{split}"]) for split in splits
        }
        return Index(path, arrays["embeddings"], tables, metadata, arrays["names"])

    @cached_property
    def names(self) -> list[str]:
        """Names of the images of the database, (M)."""
        return bytes(self._names).decode("utf-8", "surrogateescape").split("\n")[:-1]

    def nearest(self, queries: Tensor, k: int) -> Tensor:
        """The rows (B, k) that are nearest to queries (B, D); ConfigError where there are fewer."""
        if not 1 <= k <= len(self.embeddings):
            raise ConfigError(f"{k} neighbours of {len(self.embeddings)} images in {self.path}")
        return nearest_rows(queries, self.embeddings, k)

    def embedded(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Embeddings (..., D) of rows (...) of the database."""
        return np.asarray(self.embeddings[rows], dtype=np.float32)


class Neighbours(Wrapped):
    """The items of another data set with `neighbours` (k, D) float32, embeddings of length 1.

    source: the other data set, whose images were indexed.
    index: file of scripts/build_index.py.  split: which of its tables is of this data set.
    k: neighbours of an item; the paper trains with 4.
    choose: the `nearest` k of the K that the index has, or k of them at `random`, in another way in
        every epoch, which augments them.
    fewest: an item gets this many to k different ones, as many as chance says, the first repeated
        to make up k. To attention a token that is repeated weighs more, and k alike are one: so the
        model learns to draw from a single embedding, as a text has. By default, always k.

    Items are found by their `relpath`, several of one name by their place; those without by their
    place, and the pixels of some of them are held against those that were indexed.

    Raises ConfigError: no such index, an index of another data set, more neighbours than it has.
    """

    def __init__(
        self,
        source: Any,
        index: str,
        *,
        split: str = "train",
        k: Positive = 4,
        choose: Choice = "nearest",
        fewest: Positive | None = None,
    ) -> None:
        super().__init__(source)
        require_known("choose", choose, get_args(Choice))
        self.index = Index.read(index)
        if split not in self.index.tables:
            known = ", ".join(self.index.tables) or "none"
            near = did_you_mean(split, self.index.tables)
            raise ConfigError(f"split: {split!r}; {index} has the neighbours of {known}{near}")
        self.table = self.index.tables[split]
        most = self.table.neighbours.shape[1]
        if not 1 <= k <= most:
            raise ConfigError(f"k: {k}; expected 1 to {most}, the neighbours in {index}")
        if fewest is not None and not 1 <= fewest <= k:
            raise ConfigError(f"fewest: {fewest}; expected 1 to k, {k}")
        self.k, self.choose, self.fewest = k, choose, fewest
        self._require_of_source()

    def changed(self, item: dict[str, Any], index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The item with `neighbours`."""
        rows = self.table.neighbours[self._row(item, index)]
        if self.choose == "random":
            rows = rows[np.sort(rng.permutation(len(rows))[: self.k])]
        if self.fewest is None:
            rows = rows[: self.k]
        else:
            count = int(rng.integers(self.fewest, self.k, endpoint=True))
            rows = rows[np.arange(self.k) % count]
        return {**item, "neighbours": self.index.embedded(rows)}

    def _row(self, item: dict[str, Any], index: int) -> int:
        """Where an item is in the table."""
        if "relpath" not in item:
            return index
        key = key_of(item)
        if index < len(self.table.keys) and self.table.keys[index] == key:
            return index  # of items of one name, as two directories have them, this one
        row = int(self.table.rows_of(np.array([key]))[0])
        if row < 0:
            raise self._of_another(item["relpath"])
        return row

    def _of_another(self, name: str) -> ConfigError:
        return ConfigError(
            f"index: {self.index.path} is of another data set: {name} is not in it; build one of "
            "this data set with scripts/build_index.py"
        )

    def _require_of_source(self) -> None:
        """Raise ConfigError unless the items of the source are those that were indexed."""
        names = names_of(self.source)
        if names is not None:
            asked = [names[i] for i in _spread(len(names), _PROBED)]
            rows = self.table.rows_of(np.array([name_key(name) for name in asked]))
            if (rows < 0).any():
                raise self._of_another(asked[int((rows < 0).argmax())])
            return
        count, indexed = len(self.source), len(self.table.keys)
        if count > indexed:
            raise self._of_another(f"item {indexed} of {count}")
        for i in _spread(count, _PROBED_ITEMS):
            item = self.source[i]
            key = key_of(item)
            found = self.table.rows_of(np.array([key]))[0] >= 0 if "relpath" in item else False
            if not found and key != self.table.keys[i]:
                raise self._of_another(f"item {i}")


def names_of(data: Any) -> list[str] | None:
    """The names of a data set of files, or of one that it is around; None where there are none."""
    while data is not None:
        if isinstance(names := getattr(data, "names", None), list):
            return names
        data = getattr(data, "source", None)
    return None


def _spread(count: int, most: int) -> list[int]:
    """Up to so many of the numbers below `count`, evenly spread, both ends among them."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).astype(int).tolist()))
