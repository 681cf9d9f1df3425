"""LAION (arXiv:2111.02114, arXiv:2210.08402), as far as it was downloaded, as tar shards.

Shard k holds what is kept of rows k N to (k + 1) N - 1 of the tables, so what is in it depends on
these rows and their images alone, but for images that an earlier row has.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm

from ldm.config import ConfigError
from ldm.data.listing import existing_directory
from ldm.preparation.archives import existing_source
from ldm.preparation.chunk import chunks
from ldm.preparation.command import plan_of
from ldm.preparation.downloads import Downloads, num_rows, rows_of_downloads, rows_of_tables
from ldm.preparation.job import PARTIAL, check_count, preparing
from ldm.preparation.journal import Plan, fingerprint
from ldm.preparation.shards import Filters, ShardTable, write_shard

__all__ = ["SHARDS", "prepare_laion"]

SHARDS = "shards.json"
_ENDING = ".parquet"


def prepare_laion(args: argparse.Namespace) -> None:
    """Write shards and their table, as the flags of `scripts/prepare_laion.py` say.

    Raises ConfigError for what the user got wrong.
    """
    if args.per_shard < 1:
        raise ConfigError(f"--per-shard {args.per_shard}: expected 1 or more")
    filters = Filters(
        args.min_side, args.max_aspect, args.min_similarity, args.max_unsafe, args.max_watermark
    )
    what = "the directory that the images were downloaded to"
    plan = plan_of(args, "shards", expected=None, what=what)
    root = existing_directory(plan.sources[0], key="SOURCE", expected=what)
    tables = _tables(args.metadata, root)
    settings = {
        "per_shard": args.per_shard,
        "metadata": json.dumps([fingerprint(table) for table in tables]),
        **asdict(filters),
    }
    _write(replace(plan, settings=settings), root, tables, filters, args)


def _tables(given: Sequence[str] | None, root: Path) -> list[Path]:
    """The files of --metadata, of which a directory stands for those in it; else those in root."""
    if not given:
        return sorted(root.glob(f"*{_ENDING}"))
    tables: list[Path] = []
    for each in given:
        path = existing_source(each, "tables in Parquet, or a directory of them", key="--metadata")
        tables += sorted(path.glob(f"*{_ENDING}")) if path.is_dir() else [path]
    if not tables:
        raise ConfigError(f"--metadata {' '.join(given)}: holds no files ending in {_ENDING}")
    return tables


def _write(
    plan: Plan, root: Path, tables: Sequence[Path], filters: Filters, args: argparse.Namespace
) -> None:
    downloads, out = Downloads(root), Path(args.out)
    rows = rows_of_tables(tables) if tables else rows_of_downloads(downloads)
    total = num_rows(tables) if tables else len(downloads.names)
    with preparing(out, plan) as (journal, is_begun):
        table = ShardTable(out / SHARDS, goes_on=is_begun)
        with tqdm(total=total, unit="row") as bar, ThreadPoolExecutor(args.workers) as pool:
            for index, some in enumerate(chunks(downloads.found(rows), args.per_shard)):
                name = f"{index:05}.tar"
                if table.is_whole(name):
                    bar.update(len(some))
                    continue
                partial = out / f"{PARTIAL}{index}"  # no .tar: nothing takes it for a shard
                with partial.open("wb") as file:
                    shard = write_shard(
                        name, some, downloads, filters, file, pool=pool, told=bar.update
                    )
                table.add(shard, partial)
        table.tell()
        if not table.num_samples:
            raise ConfigError(f"SOURCE: {root}: nothing is kept of {total} rows, as told above")
        check_count(table.num_samples, plan)
        journal.finish(plan, table.num_samples)
