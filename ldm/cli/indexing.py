"""An index of neighbours, built: images embedded by CLIP, and the nearest of them to each item."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from ldm.cli.rundir import model_files
from ldm.cli.running import autocast, check_least, device_of
from ldm.cli.sampling.clip import digest_of_clip
from ldm.conditioning.clip import FrozenClipImageEmbedder
from ldm.config import ConfigError, instantiate_from_config, load, locate, to_plain, trust
from ldm.config.errors import value_needed
from ldm.data.folder import ImageFolder
from ldm.data.mapped import write_arrays
from ldm.data.retrieval import Neighbours, key_of, name_key, names_of, nearest_rows
from ldm.data.substitutes import Substituted
from ldm.hashing import hash64
from ldm.log import log
from ldm.tensor import to_image_tensor

__all__ = ["build_index"]

_SAVED = 2.0  # seconds between two notes of how far it is
_QUERIES = 1024  # items whose neighbours are looked for at a time
SPLITS = ("train", "validation", "test")


def build_index(args: argparse.Namespace) -> Path:
    """Embed, find the neighbours, write the index; goes on where it was stopped.

    args: the flags of `scripts/build_index.py`.
    Raises ConfigError for what the user got wrong.
    """
    check_least(args, k=1, batch_size=1, num_workers=0)
    for package in args.trust:
        trust(package)
    device, digest = device_of(args.device), digest_of_clip(args.clip)
    embedder = FrozenClipImageEmbedder(args.clip)
    embedder.prepare()
    embedder.to(device)
    sets = _data_sets(args.source, embedder.size, args.overrides)
    apart = None if args.database is None else _first_set(args.database, embedder.size)
    database = _first(sets) if apart is None else apart
    _require_enough(args.k + (apart is None), len(database), args.k)
    kinds = {name: type(data).__name__ for name, data in sets.items()}
    told = {
        **{"source": args.source, "overrides": args.overrides, "clip": digest},
        "database": args.database or args.source,
        **{"k": args.k, "precision": args.precision, "batch_size": args.batch_size},
        "sets": {name: [kinds[name], len(data), _mark(data)] for name, data in sets.items()},
        "images": [len(database), _mark(database)],
    }
    out = Path(args.out)
    parts = _Parts(out.with_name(f"{out.name}.parts"), told)
    vectors = _embedded(parts, "database", database, embedder, args)
    arrays = {"embeddings": vectors, "names": _joined(_names(database))}
    known = _keys(database)
    for split, data in sets.items():
        if data is database:
            queries, keys, own = vectors, known, np.arange(len(data))
        else:
            queries, keys = _embedded(parts, split, data, embedder, args), _keys(data)
            own = _rows_of(keys, known)
        _require_enough(args.k + bool((own >= 0).any()), len(database), args.k)
        arrays[f"keys.{split}"] = keys
        arrays[f"neighbours.{split}"] = _nearest(
            parts, split, queries, vectors, args.k, device, own
        )
    write_arrays(out, arrays, {"clip": digest, "database": told["database"]})
    shutil.rmtree(parts.directory)
    log.info("%s: %d images of %d numbers, %s", out, *vectors.shape, ", ".join(sets))
    return out


def _require_enough(least: int, count: int, k: int) -> None:
    if count < least:
        raise ConfigError(f"--k {k}: the database has {count} images; expected {least} or more")


def _data_sets(source: str, size: int, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The data sets of a run or a configuration by their splits, or a directory of images.

    What is around a data set to give it neighbours is taken off: it may need this very index.
    """
    path = Path(source)
    if path.is_dir() and not any((path / "configs").glob("*-project.yaml")):
        if overrides:
            raise ConfigError(f"{overrides[0]}: {source} is a directory of images; expected none")
        return {"train": ImageFolder(source, size, split="all")}
    files = [path] if path.suffix in (".yaml", ".yml") else model_files(source, None)[1]
    config = load(files, overrides)
    found = {}
    for split in SPLITS:
        block = OmegaConf.select(config, f"data.params.{split}")
        if block is None:
            continue
        place = f"data.params.{split}"
        while "target" in block and locate(block["target"]) is Neighbours:
            block, place = block["params"]["source"], f"{place}.params.source"
        if lacking := sorted(OmegaConf.missing_keys(block)):
            raise ConfigError("\n".join(value_needed(f"{place}.{key}") for key in lacking))
        found[split] = instantiate_from_config(to_plain(block), path=place)
    if not found:
        raise ConfigError(f"{source}: there are no data sets in it: data.params.train is missing")
    return found


def _first(sets: Mapping[str, Any]) -> Any:
    return next(iter(sets.values()))


def _first_set(source: str, size: int) -> Any:
    """The training set of a run or a configuration, or a directory of images."""
    return _first(_data_sets(source, size))


def _names(data: Any) -> list[str]:
    """The names of the items, their numbers where they have none."""
    return names_of(data) or [str(index) for index in range(len(data))]


def _joined(names: Sequence[str]) -> NDArray[np.uint8]:
    text = "".join(f"{name}\n" for name in names).encode("utf-8", "surrogateescape")
    return np.frombuffer(text, np.uint8)


def _mark(data: Any) -> str:
    """What tells a data set from others of its kind and length: its names, or its first item."""
    names = names_of(data)
    number = key_of(data[0]) if names is None else hash64(_joined(names).tobytes())
    return f"{number:x}"


def _keys(data: Any) -> NDArray[np.int64]:
    """The key of each item, (N,)."""
    names = names_of(data)
    if names is not None:
        return np.array([name_key(name) for name in names], np.int64)
    return np.array([key_of(data[index]) for index in range(len(data))], np.int64)


def _rows_of(keys: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where keys (N,) are among those of the database, (N,); -1 for those that are not."""
    rows = {key: row for row, key in enumerate(known.tolist())}
    return np.array([rows.get(key, -1) for key in keys.tolist()], np.int64)


class _Parts:
    """What is done so far, in a directory: arrays that fill, and a note of how far they are."""

    def __init__(self, directory: Path, told: Mapping[str, Any]) -> None:
        self.directory, self.note = directory, directory / "state.json"
        self.told: dict[str, Any] = json.loads(json.dumps(told))
        self.done: dict[str, int] = {}
        self._last = time.monotonic()
        if not self.note.is_file():
            directory.mkdir(parents=True, exist_ok=True)
            return
        before = json.loads(self.note.read_text(encoding="utf-8"))
        for key, value in self.told.items():
            if before["told"].get(key) != value:
                raise ConfigError(
                    f"{directory}: was begun with {key} {before['told'].get(key)}, not {value}; "
                    "give another --out, or remove it"
                )
        self.done = before["done"]

    def array(self, name: str, shape: tuple[int, ...], kind: type) -> Any:
        """An array that is filled up to `done[name]`."""
        path = self.directory / f"{name}.npy"
        if name in self.done and path.is_file():
            return np.lib.format.open_memmap(path, mode="r+")
        self.done[name] = 0
        return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)

    def advance(self, name: str, count: int, array: Any) -> None:
        """Note that an array is filled up to `count`, now and then and when it is full."""
        if time.monotonic() - self._last < _SAVED and count < len(array):
            return
        array.flush()
        self.done[name] = count
        text = json.dumps({"told": self.told, "done": self.done}, indent=1)
        part = self.note.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        part.replace(self.note)
        self._last = time.monotonic()


def _embedded(
    parts: _Parts,
    name: str,
    data: Any,
    embedder: FrozenClipImageEmbedder,
    args: argparse.Namespace,
) -> Any:
    """Embeddings of all images of a data set, (N, D) float16, memory-mapped."""
    width, device = embedder.embed_dim, next(embedder.parameters()).device
    assert width is not None
    array = parts.array(name, (len(data), width), np.float16)
    done = parts.done[name]
    with _bar(name, "embedded", len(data), done) as bar:
        for images, is_itself in _batches(data, done, args):
            try:
                with autocast(device, args.precision):
                    found = embedder(to_image_tensor(images))
            except ValueError as error:
                raise ConfigError(f"{args.source}: {error}") from error
            # an image that stands in for a bad file would be its own neighbour
            found = found.cpu().masked_fill(~is_itself[:, None], 0)
            array[done : done + len(images)] = found.numpy()
            done += len(images)
            parts.advance(name, done, array)
            bar.update(len(images))
    return array


def _batches(data: Any, start: int, args: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (B, H, W, C) from one on, and whether each (B,) is its own and stands in for none."""
    names = names_of(data)

    def joined(items: Sequence[tuple[int, Mapping[str, Any]]]) -> tuple[Tensor, Tensor]:
        own = [names is None or item.get("relpath") == names[index] for index, item in items]
        images = np.stack([np.asarray(item["image"]) for _, item in items])
        return torch.from_numpy(images), torch.tensor(own)

    return iter(
        DataLoader(
            Subset(_Numbered(Substituted(data)), range(start, len(data))),
            batch_size=args.batch_size,
            num_workers=args.num_workers,
            collate_fn=joined,
        )
    )


class _Numbered(Dataset[tuple[int, Any]]):
    """Items with their numbers."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.data[index]


def _nearest(
    parts: _Parts,
    split: str,
    queries: NDArray[Any],
    database: NDArray[Any],
    k: int,
    device: torch.device,
    own: NDArray[np.int64],
) -> Any:
    """Rows of the k nearest to each query, (N, k) int32.

    own: (N,) the row that is the query itself, which does not count; -1 for none.
    """
    name = f"neighbours.{split}"
    array = parts.array(name, (len(queries), k), np.int32)
    done = parts.done[name]
    with _bar(split, "compared", len(queries), done) as bar:
        while done < len(queries):
            asked = torch.from_numpy(np.array(queries[done : done + _QUERIES])).to(device)
            rows = nearest_rows(
                asked, database, k, own=torch.from_numpy(own[done : done + len(asked)])
            )
            array[done : done + len(asked)] = rows.cpu().numpy()
            done += len(asked)
            parts.advance(name, done, array)
            bar.update(len(asked))
    return array


def _bar(name: str, what: str, total: int, done: int) -> Any:
    return tqdm(total=total, initial=done, unit="image", desc=f"{name} {what}")
