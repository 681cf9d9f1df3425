"""COCO (arXiv:1405.0312) and its maps of stuff (arXiv:1612.03716), as their owners publish them.

DIR/train2017/000000000009.jpg
DIR/annotations/instances_train2017.json
DIR/stuffthingmaps/train2017/000000000009.png
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ldm.config import ConfigError
from ldm.log import log
from ldm.preparation.archives import members
from ldm.preparation.command import plan_of
from ldm.preparation.job import prepare
from ldm.preparation.journal import Plan
from ldm.preparation.record import Record

__all__ = ["COUNTS", "part_of", "prepare_coco", "records"]

# the owner's numbers of files, by directory; those of annotations, by archive: all go to one place
COUNTS = {
    "train2014": 82783,
    "val2014": 40504,
    "train2017": 118287,
    "val2017": 5000,
    "annotations_trainval2014": 6,  # instances, captions and keypoints of train and val
    "annotations_trainval2017": 6,
    "stuffthingmaps/train2017": 118287,
    "stuffthingmaps/val2017": 5000,
}

_ANNOTATIONS = "annotations"
_MAPS = "stuffthingmaps"
_ENDINGS = {_ANNOTATIONS: (".json",), _MAPS: (".png",)}
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")


def part_of(source: Path) -> str:
    """Name of an archive or directory without its extension, which says what is in it."""
    return source.name if source.is_dir() else source.name.partition(".")[0]


def _kind(source: Path) -> str | None:
    """The directory that a source's files go to; None for images, which have one of their own."""
    part = part_of(source).lower()
    return next((kind for kind in (_MAPS, _ANNOTATIONS) if kind in part), None)


def records(source: Path) -> Iterator[Record]:
    """The files of an archive of the owner's, or of the directory that was in it.

    Images lie in a directory that is called as the archive, annotations in `annotations`, maps in
    `stuffthingmaps/train2017` or the like. Other files are left out.
    """
    kind, part = _kind(source), part_of(source)
    endings = _ENDINGS[kind] if kind else _IMAGE_ENDINGS
    for record in members(source):
        if record.name.lower().endswith(endings):
            yield replace(record, name=_placed(record.name, kind, part))


def _placed(name: str, kind: str | None, part: str) -> str:
    """Where a file goes: its own directory is kept, that of its kind is put before it."""
    *above, file = name.split("/")
    if kind == _ANNOTATIONS:
        return f"{kind}/{file}"
    if kind is None:
        return f"{above[-1] if above else part}/{file}"
    own = above[-1:] if above[-1:] != [kind] else []
    return "/".join([kind, *own, file])


def prepare_coco(args: argparse.Namespace) -> None:
    """Write the files of each source below --out, as the flags of `scripts/prepare_coco.py` say.

    The files of a source are counted before any of it is written.
    Raises ConfigError for what the user got wrong.
    """
    whole = plan_of(args, "", expected=None, what="an archive of COCO, such as train2017.zip")
    if len(args.sha256) not in (0, len(whole.sources)):
        raise ConfigError(
            f"--sha256: {len(args.sha256)} digests of {len(whole.sources)} sources; expected one "
            "of each"
        )
    for index, source in enumerate(whole.sources):
        counts = Counter(record.name.rpartition("/")[0] for record in records(source))
        if not counts:
            raise ConfigError(f"{source}: holds none of COCO's files; expected one of its archives")
        plan = Plan(
            part_of(source),
            (source,),
            expected=_expected(source, counts) if args.expect is None else whole.expected,
            digests=whole.digests[index : index + 1],
        )
        total = sum(counts.values())
        prepare(records(source), Path(args.out), plan, total=total, workers=args.workers)


def _expected(source: Path, counts: Mapping[str, int]) -> int | None:
    """The owner's number of files in the directories that a source fills; None if not known."""
    known = {
        directory: COUNTS.get(part_of(source) if directory == _ANNOTATIONS else directory)
        for directory in counts
    }
    unknown = [directory for directory, count in known.items() if count is None]
    if unknown:
        log.warning(
            "%s: how many files belong to %s is not known, they are not counted",
            source,
            ", ".join(unknown),
        )
        return None
    return sum(count for count in known.values() if count is not None)
