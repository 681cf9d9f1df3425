"""ImageNet (ILSVRC2012) as its owner publishes it, by synsets, as `ldm.data.imagenet` reads it.

The training images are a tar of a thousand tars, one for each synset. The validation images are a
flat tar; which synset each is of, the development kit says, or a text file.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from tqdm import tqdm

from ldm.config import ConfigError
from ldm.data.listing import utf8_text
from ldm.log import log
from ldm.preparation.archives import existing_source, members, members_of_tars
from ldm.preparation.chunk import chunks
from ldm.preparation.command import plan_of
from ldm.preparation.header import Sizes
from ldm.preparation.job import prepare, preparing
from ldm.preparation.journal import Plan, write_whole
from ldm.preparation.record import Record

__all__ = [
    "COUNTS",
    "NUM_CLASSES",
    "Labels",
    "Part",
    "labels_of",
    "list_large",
    "prepare_imagenet",
    "records",
]

Part = Literal["train", "val"]

COUNTS: dict[Part, int] = {"train": 1281167, "val": 50000}
NUM_CLASSES = 1000

_SYNSET = re.compile(r"n\d{8}")
_ENDINGS = (".jpeg", ".jpg")
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_META = "meta.mat"
_CHUNK = 512  # images whose headers are read together


@dataclass(frozen=True)
class Labels:
    """Which synset each validation image is of, by the image's name without extension.

    words: what the synsets are called, where that is known.
    """

    synsets: Mapping[str, str]
    words: Mapping[str, str] = field(default_factory=dict)


def labels_of(path: Path) -> Labels:
    """The labels of the validation images.

    path: the development kit (`ILSVRC2012_devkit_t12.tar.gz`, or the directory in it), or a text
        file: lines of a name and a synset, or of a synset each, in the order of the images.

    Raises ConfigError when it is neither.
    """
    expected = "the development kit of ILSVRC2012, or a text file of synsets"
    existing_source(path, expected, key="--labels")
    if path.is_dir() or path.suffix != ".txt":
        return _of_kit(path)
    rows = [line.split() for line in utf8_text(path).splitlines() if line.strip()]
    synsets: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        if not 1 <= len(row) <= 2 or not _SYNSET.fullmatch(row[-1]):
            raise ConfigError(
                f"--labels {path}: line {number}: {' '.join(row)[:80]!r}; expected a synset such "
                "as n01751748, with the image's name before it or alone (numbers need the kit)"
            )
        name = PurePosixPath(row[0]).stem if len(row) == 2 else _image_name(number)
        synsets[name] = row[-1]
    return Labels(synsets)


def _image_name(number: int) -> str:
    """Name of a validation image, without extension, by its number from 1."""
    return f"ILSVRC2012_val_{number:08}"


def _of_kit(path: Path) -> Labels:
    """The labels of the development kit: numbers of synsets, and a table of these in MATLAB's form.

    Numbers 1 to 1000 are the synsets of images, those after it their ancestors.
    """
    files: dict[str, bytes] = {}
    for record in members(path):
        name = PurePosixPath(record.name).name
        if name in (_TRUTH, _META):
            files[name] = record.content()
    lacking = [name for name in (_TRUTH, _META) if name not in files]
    if lacking:
        raise ConfigError(
            f"--labels {path}: holds no {' and no '.join(lacking)}; expected the development kit "
            "of ILSVRC2012, or a text file of synsets"
        )
    table = _synsets_of_kit(files[_META], path)
    synsets = {}
    for number, line in enumerate(files[_TRUTH].split(), start=1):
        index = int(line) if line.isdigit() else 0
        if index not in table:
            found = line.decode("utf-8", "replace")[:40]
            raise ConfigError(
                f"--labels {path}: {_TRUTH}: line {number}: {found!r}; expected a number 1 to "
                f"{NUM_CLASSES} that {_META} lists"
            )
        synsets[_image_name(number)] = table[index][0]
    return Labels(synsets, dict(table.values()))


def _synsets_of_kit(content: bytes, path: Path) -> dict[int, tuple[str, str]]:
    """Number -> synset and its words, of the synsets that have images."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ConfigError(
            f"--labels {path}: {_META} needs scipy: pip install scipy, or the extra 'eval'; or "
            "give a text file of synsets"
        ) from None
    try:
        rows: Any = loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
        table = {
            int(row["ILSVRC2012_ID"]): (str(row["WNID"]), str(row["words"]))
            for row in rows.reshape(-1)
        }
    except (ValueError, KeyError, IndexError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"--labels {path}: {_META} has no table of synsets: {error}") from error
    return {number: row for number, row in table.items() if number <= NUM_CLASSES}


def records(source: Path, part: Part, labels: Labels | None = None) -> Iterator[Record]:
    """The images of a part, under the names that they get: `train/n01440764/...JPEG`.

    source: the owner's tar, a directory of the tars in it, or images, in an archive or directory,
        that lie below a directory of their synset or that `labels` knows.

    Raises ConfigError for an image of no known synset.
    """
    found = members_of_tars(source) if _is_nested(source) else members(source)
    for record in found:
        path = PurePosixPath(record.name)
        if path.suffix.lower() in _ENDINGS:
            synset = _synset_of(path, source, labels)
            yield replace(record, name=f"{part}/{synset}/{path.name}")


def _is_nested(source: Path) -> bool:
    """Whether the images of each synset are in a tar of their own."""
    if source.is_dir():
        return any(_SYNSET.fullmatch(path.stem) for path in source.glob("*.tar"))
    first = next(members(source), None)
    return first is not None and first.name.endswith(".tar")


def _synset_of(path: PurePosixPath, source: Path, labels: Labels | None) -> str:
    if _SYNSET.fullmatch(path.parent.name):
        return path.parent.name
    if labels is None:
        raise ConfigError(
            f"{source}: {path} lies in no directory of a synset; expected one such as n01440764, "
            "or --labels, which says what the validation images are"
        )
    if path.stem not in labels.synsets:
        raise ConfigError(
            f"--labels: says nothing about {path}; expected a line for each image of {source}"
        )
    return labels.synsets[path.stem]


def prepare_imagenet(args: argparse.Namespace) -> None:
    """Write the images of a part by synset, as the flags of `scripts/prepare_imagenet.py` say.

    Raises ConfigError for what the user got wrong, and for another number of synsets than 1000
    unless --expect is given.
    """
    out, part = Path(args.out), args.part
    if args.drop_below is not None and args.drop_below < 1:
        raise ConfigError(f"--drop-below {args.drop_below}: expected pixels, 1 or more")
    what = f"ILSVRC2012_img_{part}.tar, or what was in it"
    plan = plan_of(args, part, expected=COUNTS[part], what=what)
    labels = labels_of(Path(args.labels).expanduser()) if args.labels else None
    source = plan.sources[0]
    if labels is not None:
        images = tuple(labels.synsets) if len(labels.synsets) == plan.expected else ()
        plan = replace(plan, settings={"labels": _digest(labels)}, stems=images)
    names = prepare(records(source, part, labels), out, plan, workers=args.workers)
    found = len({PurePosixPath(name).parent.name for name in names})
    if args.expect is None and found != NUM_CLASSES:
        raise ConfigError(f"{source}: images of {found} synsets; expected {NUM_CLASSES}")
    if labels is not None and labels.words:
        lines = "".join(f"{key} {words}\n" for key, words in sorted(labels.words.items()))
        write_whole(out / "synset_human.txt", lines.encode())
    if args.drop_below:
        list_large(names, out, plan, args.drop_below, args.workers)


def _digest(labels: Labels) -> str:
    """What the labels are, in a word."""
    return hashlib.sha256(json.dumps(dict(labels.synsets)).encode()).hexdigest()[:16]


def list_large(names: list[str], out: Path, plan: Plan, side: int, workers: int) -> Path:
    """Write the list of the images whose shorter side has `side` pixels or more; returns its path.

    What super-resolution is trained on: SR3 (arXiv:2104.07636) leaves the others out.
    """
    path = out / f"{plan.part}_from_{side}.txt"
    with preparing(out, plan) as (journal, _), ThreadPoolExecutor(workers) as pool:
        sizes, large = Sizes(out, out / f".sizes-{plan.part}"), []
        with tqdm(total=len(names), unit="image", desc="sizes") as bar:
            for chunk in chunks(names, _CHUNK):
                for name, size in zip(chunk, sizes.of(chunk, pool), strict=True):
                    if not isinstance(size, str) and min(size) >= side:
                        large.append(name)
                bar.update(len(chunk))
        write_whole(path, "".join(f"{name}\n" for name in large).encode())
        sizes.forget()
        journal.finish(plan, len(names))
    log.info("%s: %d of %d images", path, len(large), len(names))
    return path
