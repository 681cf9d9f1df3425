"""Images with captions in tars, as large collections are kept (`ldm.data.shard_index`)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from webdataset.shardlists import expand_urls  # type: ignore[import-untyped]

from ldm.config import ConfigError, nearest_path
from ldm.data.captions import taken
from ldm.data.decoding import UNREADABLE, decoded_image, reason
from ldm.data.images import MIN_SIDE, ImageFiles
from ldm.data.listing import Split, in_split
from ldm.data.shard_index import ShardIndex, index_of, part_of, texts_of
from ldm.data.substitutes import BadSample
from ldm.data.transforms import Framing, Interpolation
from ldm.log import log, rank
from ldm.ranges import NonNegative, Weight

__all__ = ["Shards"]

_THREADS = 8  # that look into tars at once
_PROGRESS_SECONDS = 10.0
_NAMED = 10  # problems that one message shows


class Shards(ImageFiles):
    """Images of tars in webdataset's form, in any order: each is read where it lies.

    shards: a directory of `.tar` files, one of them, a pattern, `DIR/{00000..00012}.tar`, or a list
        of these. Files of this machine; whatever tar a pattern names has to be there.
    size, random_crop, flip_p, interpolation, fast_decode: as in `ldm.data.folder.ImageFolder`. An
        image is not mirrored where the caption that is taken says left or right.
    split, val_fraction: likewise, by a hash of the keys.
    captions: leave out samples without a caption; false gives the images of all, without captions.
    random_caption: as in `ldm.data.folder.ImageFolder`.
    min_side: leave out images whose shorter side has fewer pixels.
    max_aspect: leave out images whose longer side is more than this many times the shorter one.
    index_dir: where the index of each tar is stored, see `ldm.data.shard_index.index_of`.

    An item holds `image` (H, W, 3) uint8, `relpath` (tar and member) and `caption`. What is left
    out is counted and told; samples that the index finds bad are named. One that
    cannot be decoded is a `BadSample`.

    Raises ConfigError for a tar that is not there, and when no sample is left.
    """

    def __init__(
        self,
        shards: str | Sequence[str],
        size: int | Sequence[int] = 256,
        *,
        split: Split = "train",
        val_fraction: float = 0.05,
        random_crop: bool = False,
        flip_p: float = 0.0,
        interpolation: Interpolation = "bicubic",
        fast_decode: bool = False,
        captions: bool = True,
        min_side: NonNegative = 0,
        max_aspect: Weight | None = None,
        index_dir: str | Path | None = None,
        random_caption: bool | None = None,
    ) -> None:
        framing = Framing.of(
            size, random_crop=random_crop, flip_p=flip_p, interpolation=interpolation
        )
        if max_aspect is not None and not max_aspect >= 1:
            raise ConfigError(f"max_aspect: {max_aspect}; expected 1 or more")
        self._paths = list(_paths([shards] if isinstance(shards, str) else shards))
        found = _indices(self._paths, Path(index_dir).expanduser() if index_dir else None)
        places = [path.absolute() for path in self._paths]
        root = Path(os.path.commonpath([place.parent for place in places]))
        samples = np.concatenate([index.samples for index in found])
        if not len(samples):
            raise ConfigError(f"shards: {root}: no image in {len(found)} tars{_problems(found)}")
        left_out = _left_out(samples, captions=captions, min_side=min_side, max_aspect=max_aspect)
        kept = np.flatnonzero(~np.any(list(left_out.values()), axis=0))
        if not len(kept):
            raise ConfigError(f"shards: {root}: no sample is left of {_counts(left_out)}")
        kept = kept[in_split(samples["position"][kept], split, val_fraction)]
        _tell(root, found, left_out, f"{len(kept)} of {len(samples)} images ({split})")
        lengths = [len(index.samples) for index in found]
        self._samples = samples[kept]
        self._shards = np.repeat(np.arange(len(found), dtype=np.int32), lengths)[kept]
        self._has_captions = captions
        self._is_random = split == "train" if random_caption is None else random_caption
        tars = [place.relative_to(root).as_posix() for place in places]
        names = np.concatenate([index.names for index in found])[kept]
        super().__init__(root, _Names(tars, self._shards, names), framing, fast_decode=fast_decode)

    def facts(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The caption."""
        if not self._has_captions:
            return {}
        try:
            content = self._part(index, "caption")
            texts = texts_of(content, is_json=bool(self._samples["is_json"][index]))
        except (OSError, ValueError) as error:
            raise BadSample(self.name_of(index), f"its caption: {reason(error)}") from None
        if not texts:
            raise BadSample(self.name_of(index), "its caption is not where the index says")
        return {"caption": taken(texts, rng, is_random=self._is_random)}

    def _part(self, index: int, what: str) -> bytes:
        sample = self._samples[index]
        path = self._paths[self._shards[index]]
        return part_of(path, int(sample[f"{what}_at"]), int(sample[f"{what}_size"]))

    def _pixels_at(self, index: int) -> NDArray[Any] | str:
        try:
            return decoded_image(self._part(index, "image"), draft_side=self._draft_side)
        except UNREADABLE as error:
            return reason(error)

    def _survey(self) -> None:
        """The index has looked at the headers."""


class _Names(Sequence[str]):
    """Tar and member of each sample, without a Python object for each of many millions."""

    def __init__(
        self, tars: list[str], shards: NDArray[np.int32], members: NDArray[np.bytes_]
    ) -> None:
        self._tars, self._shards, self._members = tars, shards, members

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, index: Any) -> Any:
        """Of one sample."""
        return f"{self._tars[self._shards[index]]}/{os.fsdecode(self._members[index])}"


def _paths(words: Sequence[str]) -> Iterator[Path]:
    """The tars that words name, each once; ConfigError names what is not there."""
    found: dict[Path, None] = {}
    for word in words:
        if "://" in word or word.startswith("pipe:"):
            raise ConfigError(f"shards: {word}: expected files of this machine; copy them to it")
        try:
            paths = [Path(each).expanduser() for each in expand_urls(word)]
        except ValueError as error:
            raise ConfigError(f"shards: {word}: {error}") from error
        missing = [path for path in paths if not path.exists()]
        if missing:
            near = nearest_path(missing[0].absolute())
            hint = f"; did you mean {near}?" if near and len(paths) == 1 else ""
            raise ConfigError(
                f"shards: {word}: {len(missing)} of {len(paths)} are not there, e.g. {missing[0]}; "
                f"expected a directory of .tar files, one of them, or a pattern{hint}"
            )
        for path in paths:
            found |= dict.fromkeys(_tars_below(path) if path.is_dir() else [path])
    if not found:
        raise ConfigError("shards: []; expected a directory of .tar files, or a pattern")
    return iter(found)


def _tars_below(directory: Path) -> list[Path]:
    tars = [path for path in directory.rglob("*.tar") if not path.name.startswith(".")]
    if not tars:
        raise ConfigError(f"shards: {directory} holds no files that end in .tar")
    return sorted(tars)


def _indices(paths: Sequence[Path], directory: Path | None) -> list[ShardIndex]:
    """The index of each tar; progress is told where it takes long."""

    def indexed(path: Path) -> ShardIndex:
        try:
            return index_of(path, directory)
        except OSError as error:
            raise ConfigError(f"shards: {path}: {error.strerror or error}") from error

    told = time.monotonic()
    found = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for index in pool.map(indexed, paths):
            found.append(index)
            if time.monotonic() - told > _PROGRESS_SECONDS:
                told = time.monotonic()
                log.info("looked into %d of %d tars, up to %s", len(found), len(paths), index.path)
    return found


def _left_out(
    samples: NDArray[np.void], *, captions: bool, min_side: int, max_aspect: float | None
) -> dict[str, NDArray[np.bool_]]:
    """Which samples are not wanted, by the reason."""
    sides = np.stack([samples["width"], samples["height"]])
    shorter, longer = sides.min(axis=0), sides.max(axis=0)
    reasons = {f"with a side below {MIN_SIDE} pixels": shorter < MIN_SIDE}
    if captions:
        reasons["without a caption (captions: false takes them)"] = samples["caption_size"] == 0
    if min_side > MIN_SIDE:
        reasons[f"with a side below min_side, {min_side}"] = shorter < min_side
    if max_aspect is not None:
        reasons[f"longer than max_aspect, {max_aspect}"] = longer > max_aspect * shorter
    return reasons


def _counts(left_out: dict[str, NDArray[np.bool_]]) -> str:
    total = len(next(iter(left_out.values())))
    counts = [f"{mask.sum()} {why}" for why, mask in left_out.items() if mask.any()]
    return f"{total} images: {', '.join(counts)}"


def _tell(
    root: Path, found: Sequence[ShardIndex], left_out: dict[str, NDArray[np.bool_]], used: str
) -> None:
    """Say what is used, what is left out, and what is bad."""
    log.info("%s: %s in %d tars", root, used, len(found))
    if any(mask.any() for mask in left_out.values()):
        log.info("%s: left out of %s", root, _counts(left_out))
    problems = _problems(found)
    if problems and not rank():
        log.warning("%s: bad, and left out%s", root, problems)


def _problems(found: Sequence[ShardIndex]) -> str:
    """What cannot be used, the first of it by name; nothing where there is nothing."""
    problems = [f"{index.path.name}: {problem}" for index in found for problem in index.problems]
    more = f", and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
    return f": {', '.join(problems[:_NAMED])}{more}" if problems else ""
