"""CelebA-HQ and FFHQ: numbered images to files and lists for `ldm.data.faces`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ldm.config import ConfigError
from ldm.data.decoding import EXTENSIONS
from ldm.preparation.archives import is_listed, members
from ldm.preparation.command import add_preparation, plan_of
from ldm.preparation.job import check_names, prepare
from ldm.preparation.lists import held_out, published_lists, write_split
from ldm.preparation.pictures import smaller
from ldm.preparation.record import Record, stem

__all__ = ["CELEBA_HQ", "FFHQ", "Faces", "add_faces", "face_records", "prepare_faces"]

# imgHQ is of the arrays in the published lists; masks and landmarks have other words in their names
_NUMBERED = re.compile(r"(?:imgHQ)?(\d+)")


@dataclass(frozen=True)
class Faces:
    """A set of numbered faces, 0 to count - 1.

    name: of the directory and of the lists.  held_out: images of the published validation list.
    """

    name: str
    title: str
    count: int
    held_out: int


CELEBA_HQ = Faces("celebahq", "CelebA-HQ", count=30_000, held_out=5_000)
FFHQ = Faces("ffhq", "FFHQ", count=70_000, held_out=10_000)


def add_faces(parser: argparse.ArgumentParser, faces: Faces) -> None:
    """Add the flags of a script that prepares faces."""
    sources = f"a zip, tar or directory of the {faces.count} images of {faces.title}"
    add_preparation(parser, sources, out=f"data/{faces.name}")
    add = parser.add_argument
    names = f"{faces.name}train.txt and {faces.name}validation.txt"
    add("--lists", metavar="DIR", help=f"published {names}; default: by hash")
    add("--size", type=int, help="side in pixels that images are resized to; default: as they are")


def prepare_faces(args: argparse.Namespace, faces: Faces) -> None:
    """Write the images as `00000.png` and the lists beside their directory, as the flags say.

    Raises ConfigError for what the user got wrong.
    """
    if args.size is not None and args.size < 1:
        raise ConfigError(f"--size {args.size}: expected a side of 1 pixel or more")
    plan = plan_of(
        args,
        faces.name,
        expected=faces.count,
        what=f"a zip, tar or directory of the images of {faces.title}",
        settings={"size": args.size},
    )
    numbers = tuple(f"{number:05d}" for number in range(faces.count))
    plan = replace(plan, stems=numbers if plan.expected == faces.count else ())
    train, validation = (f"{faces.name}{part}.txt" for part in ("train", "validation"))
    lists = published_lists(args.lists, train, validation)
    out, source, as_png = Path(args.out), plan.sources[0], args.size is not None
    total = None
    if is_listed(source):
        found = [record.name for record in face_records(source, as_png=as_png)]
        check_names(found, plan)
        total = len(found)
    names = prepare(
        face_records(source, as_png=as_png),
        out,
        plan,
        total=total,
        convert=partial(smaller, size=args.size) if as_png else None,
        workers=args.workers,
    )
    divide = partial(held_out, val_fraction=faces.held_out / faces.count)
    files = out.parent / train, out.parent / validation
    write_split(sorted(names), files, divide, lists=lists, key=_number)


def face_records(source: Path, *, as_png: bool) -> Iterator[Record]:
    """The images of a source whose names are numbers, in whatever directories, as `00000.jpg`.

    as_png: the name that they get is that of a PNG.
    """
    for member in members(source):
        ending = Path(member.name).suffix.lower()
        found = _NUMBERED.fullmatch(stem(member.name))
        if found and ending in EXTENSIONS:
            name = f"{int(found[1]):05d}{'.png' if as_png else ending}"
            yield replace(member, name=name)


def _number(name: str) -> str:
    """What a file and a line of a published list have in common: the last number in the name."""
    digits = re.findall(r"\d+", stem(name))
    return str(int(digits[-1])) if digits else name
