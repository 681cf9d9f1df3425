"""LSUN: a category's databases to files and lists for `ldm.data.lsun`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ldm.config import ConfigError
from ldm.data.listing import list_files
from ldm.log import log
from ldm.preparation.command import plan_of
from ldm.preparation.databases import database_entries, database_file, database_records
from ldm.preparation.job import prepare
from ldm.preparation.journal import Journal
from ldm.preparation.lists import held_out, published_lists, write_list, write_split

__all__ = ["CATEGORIES", "PARTS", "prepare_lsun"]

PARTS = ("train", "val")
_VAL_FRACTION = 0.05  # as the data sets divide images without lists


@dataclass(frozen=True)
class _Category:
    """directory: of the images.  prefix: of the lists.  counts: the owner's, of each part."""

    directory: str
    prefix: str
    counts: Mapping[str, int]


CATEGORIES = {
    "church_outdoor": _Category("churches", "church_outdoor", {"train": 126_227, "val": 300}),
    "bedroom": _Category("bedrooms", "bedrooms", {"train": 3_033_042, "val": 300}),
    "cat": _Category("cats", "cat", {"train": 1_657_266}),
}


def prepare_lsun(args: argparse.Namespace) -> None:
    """Export a database and write the lists, as the flags of `scripts/prepare_lsun.py` say.

    Raises ConfigError for what the user got wrong.
    """
    category = CATEGORIES[args.category]
    if args.part not in category.counts and args.expect is None:
        raise ConfigError(
            f"--part {args.part}: LSUN publishes no such part of {args.category}; expected "
            f"{' or '.join(category.counts)}, or --expect N for one of your own"
        )
    if args.lists and args.part == "val":
        raise ConfigError("--lists: divides the images of --part train; expected no --part val")
    out = Path(args.out or f"data/lsun/{category.directory}")
    plan = plan_of(
        args,
        args.part,
        expected=category.counts.get(args.part),
        what="a database of LSUN, a directory such as church_outdoor_train_lmdb",
        settings={"category": args.category},
    )
    train, val = (f"{category.prefix}_{part}.txt" for part in PARTS)
    lists = published_lists(args.lists, train, val)
    file = database_file(plan.sources[0])
    plan = replace(plan, sources=(file,))
    names = prepare(
        database_records(file), out, plan, total=database_entries(file), workers=args.workers
    )
    journal = Journal(out)
    files = out.parent / train, out.parent / val
    if args.part == "val" or (journal.is_done("val") and lists is None):
        _write_owners(names, out, args.part, *files, is_whole=journal.is_done("train"))
    else:
        divide = partial(held_out, val_fraction=_VAL_FRACTION)
        write_split(names, files, divide, lists=lists)


def _write_owners(
    names: list[str], out: Path, part: str, train: Path, val: Path, *, is_whole: bool
) -> None:
    """Write the lists of the owner's parts, as far as they are there."""
    if part == "train":
        write_list(train, names)
    else:
        write_list(val, names)
        if is_whole:
            theirs = set(names)
            write_list(train, [name for name in list_files(out)[0] if name not in theirs])
    done = "both parts" if part == "train" or is_whole else "its validation images, and no others"
    log.info("%s holds %s: %s and %s list the owner's split", out, done, train, val)
