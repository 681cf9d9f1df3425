"""The boxes of Open Images (arXiv:1811.00982) in COCO's format, which `ldm.data.coco` reads."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from tqdm import tqdm

from ldm.config import ConfigError
from ldm.data.listing import list_files
from ldm.log import log
from ldm.preparation.archives import existing_source, members
from ldm.preparation.box_table import Row, boxes_of_images, class_descriptions
from ldm.preparation.chunk import chunks
from ldm.preparation.command import plan_of
from ldm.preparation.header import Sizes
from ldm.preparation.job import PARTIAL, check_count, prepare, preparing
from ldm.preparation.journal import Journal, Plan, fingerprint
from ldm.preparation.record import Record

__all__ = ["COUNTS", "Boxes", "Choice", "Tally", "prepare_openimages", "write_coco"]

COUNTS = {"train": 1_743_042, "validation": 41_620, "test": 125_436}  # images with boxes, V4 to V7

_ENDINGS = (".jpg", ".jpeg", ".png")
_CHUNK = 512  # images whose headers are read together
_DECIMALS = 2  # of a pixel
_NAMED = 5


@dataclass(frozen=True)
class Choice:
    """Which boxes are kept beside those of single things themselves."""

    groups: bool = False
    depictions: bool = False


@dataclass
class Tally:
    """What was found: images and boxes that are kept, and how many are left out for which reason.

    images: of the table.  found: those of them that can be read.
    lacking: names of the first of the others.
    """

    images: int = 0
    found: int = 0
    kept_images: int = 0
    kept_boxes: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    lacking: list[str] = field(default_factory=list)

    def miss(self, image: str, why: str) -> None:
        """Count an image that cannot be read."""
        self.left_out[why] += 1
        if len(self.lacking) < _NAMED:
            self.lacking.append(image)


@dataclass(frozen=True)
class Boxes:
    """What the file is made of.

    table: images with their boxes.  names: of the image files, by the images' names.
    descriptions: names of the classes by their labels, in the order of their ids.
    """

    table: Iterable[tuple[str, list[Row]]]
    names: Mapping[str, str]
    descriptions: Mapping[str, str]
    choice: Choice = Choice()


def write_coco(boxes: Boxes, sizes: Sizes, file: IO[str]) -> Tally:
    """Write COCO's JSON: images that have boxes, the boxes in pixels, all categories.

    Images that are not on disk, that cannot be read, or of which no box is kept are left out and
    counted. Raises ConfigError for a label that has no description.
    """
    tally = Tally()
    ids = {label: index for index, label in enumerate(boxes.descriptions, start=1)}
    with (
        TemporaryFile("w+", encoding="utf-8", dir=Path(file.name).parent) as annotations,
        ThreadPoolExecutor(max_workers=8) as pool,
    ):
        file.write('{"images": [')
        for chunk in chunks(boxes.table, _CHUNK):
            present = []
            for image, rows in chunk:
                tally.images += 1
                if image in boxes.names:
                    present.append((boxes.names[image], rows))
                else:
                    tally.miss(image, "images that are not on disk")
            measured = sizes.of([name for name, _ in present], pool)
            for (name, rows), size in zip(present, measured, strict=True):
                _add(name, rows, size, ids, boxes.choice, tally, (file, annotations))
        file.write('\n],\n"annotations": [')
        annotations.seek(0)
        shutil.copyfileobj(annotations, file)
    categories = [{"id": ids[label], "name": name} for label, name in boxes.descriptions.items()]
    file.write(f'\n],\n"categories": {json.dumps(categories, ensure_ascii=False)}}}\n')
    return tally


def _add(
    name: str,
    rows: list[Row],
    size: tuple[int, int] | str,
    ids: Mapping[str, int],
    choice: Choice,
    tally: Tally,
    files: tuple[IO[str], IO[str]],
) -> None:
    """Write an image and its boxes."""
    if isinstance(size, str):
        tally.miss(name, f"images that cannot be read ({size})")
        return
    tally.found += 1
    kept = []
    for row in rows:
        if row.label not in ids:
            raise ConfigError(f"the class {row.label} of the image {name} has no description")
        box = _pixels(row, *size)
        why = _left_out(row, box, choice)
        if why is None:
            kept.append((ids[row.label], box))
        else:
            tally.left_out[why] += 1
    if not kept:
        tally.left_out["images without a box that is kept"] += 1
        return
    tally.kept_images += 1
    for index, (category, box) in enumerate(kept, start=tally.kept_boxes + 1):
        annotation = {
            "id": index,
            "image_id": tally.kept_images,
            "category_id": category,
            "bbox": box,
            "area": round(box[2] * box[3], _DECIMALS),
            "iscrowd": 0,
        }
        files[1].write(("\n" if index == 1 else ",\n") + json.dumps(annotation))
    tally.kept_boxes += len(kept)
    entry = {"id": tally.kept_images, "file_name": name, "width": size[0], "height": size[1]}
    files[0].write(("\n" if tally.kept_images == 1 else ",\n") + json.dumps(entry))


def _pixels(row: Row, width: int, height: int) -> list[float]:
    """Left, top, width and height in pixels."""
    left, top = row.left * width, row.top * height
    sides = (row.right * width - left, row.bottom * height - top)
    return [round(value, _DECIMALS) for value in (left, top, *sides)]


def _left_out(row: Row, box: list[float], choice: Choice) -> str | None:
    """Why a box is left out; None when it is kept."""
    if row.is_group and not choice.groups:
        return "boxes of groups"
    if row.is_depiction and not choice.depictions:
        return "boxes of depictions"
    if not (box[2] > 0 and box[3] > 0):
        return "boxes without area"
    return None


def prepare_openimages(args: argparse.Namespace) -> None:
    """Write COCO's JSON of a part, as the flags of `scripts/prepare_openimages.py` say.

    Images that are in archives are written below --out first; a directory of them stays where it
    is. Raises ConfigError for what the user got wrong.
    """
    out = Path(args.out)
    choice = Choice(args.keep_groups, args.keep_depictions)
    table = f"the table of boxes, such as {args.part}-annotations-bbox.csv"
    plan = plan_of(args, args.part, expected=COUNTS[args.part], what=table)
    expected = "class-descriptions-boxable.csv"
    classes = existing_source(args.classes, expected, key="--classes")
    expected = "the images, a directory or archives"
    images = [existing_source(each, expected, key="--images") for each in args.images]
    descriptions = class_descriptions(classes)
    root = images[0] if images[0].is_dir() else out / args.part
    if len(images) > 1 or not images[0].is_dir():
        _write_images(images, args.part, out, args.workers)
    names = {Path(name).stem: name for name in list_files(root, _ENDINGS)[0]}
    settings = {
        "classes": json.dumps(fingerprint(classes)),
        "images": str(root.resolve()),
        **asdict(choice),
    }
    plan = replace(plan, settings=settings)
    _write_json(plan, out, names, descriptions, choice, root)


def _write_images(archives: Iterable[Path], part: str, out: Path, workers: int) -> None:
    for archive in archives:
        if archive.is_dir():
            raise ConfigError(f"--images {archive}: expected one directory, or archives alone")
        plan = Plan(f"{part} images in {archive.name}", (archive,))
        # to look for what is there in a compressed archive is to read all of it
        if not Journal(out).has_done(plan):
            prepare(_images(archive, part), out, plan, workers=workers)


def _images(archive: Path, part: str) -> Iterator[Record]:
    for record in members(archive):
        if record.name.lower().endswith(_ENDINGS):
            yield replace(record, name=f"{part}/{record.name.rpartition('/')[2]}")


def _write_json(
    plan: Plan,
    out: Path,
    names: Mapping[str, str],
    descriptions: Mapping[str, str],
    choice: Choice,
    root: Path,
) -> None:
    path, table = out / f"instances_{plan.part}.json", plan.sources[0]
    with preparing(out, plan) as (journal, is_begun):
        done = journal.count(plan.part)
        # another number than was found then: images may have come since
        if is_begun and done is not None and plan.expected in (None, done) and path.is_file():
            journal.finish(plan, done)
            log.info("%s: is there, with %d images; remove it to make it anew", path, done)
            return
        partial, sizes = out / f"{PARTIAL}{path.name}", Sizes(root, out / f".sizes-{plan.part}")
        try:
            with (
                partial.open("w", encoding="utf-8") as file,
                tqdm(total=table.stat().st_size, unit="B", unit_scale=True) as bar,
            ):
                boxes = Boxes(boxes_of_images(table, bar.update), names, descriptions, choice)
                tally = write_coco(boxes, sizes, file)
            _tell(tally, path)
            check_count(tally.found, plan)
            # in this order: a file that is there has its number
            path.unlink(missing_ok=True)
            journal.finish(plan, tally.found)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        sizes.forget()


def _tell(tally: Tally, path: Path) -> None:
    """Log what was found; ConfigError when that is nothing."""
    log.info("%s: %d images with %d boxes", path, tally.kept_images, tally.kept_boxes)
    for why, number in tally.left_out.most_common():
        log.info("  left out: %d %s", number, why)
    if tally.lacking:
        log.warning("  images that are not there or cannot be read: %s", ", ".join(tally.lacking))
    if not tally.kept_images:
        raise ConfigError(
            f"--images: none of the {tally.images} images of the table has a box and is there; "
            "expected files that are called as the images, such as 000002b66c9c498e.jpg"
        )
