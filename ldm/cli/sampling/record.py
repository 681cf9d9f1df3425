"""The record in a PNG: all that its picture was drawn from, enough to draw it again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from ldm.config import ConfigError

__all__ = ["Record", "is_whole", "read_record", "save_png"]

_KEY = "ldm"
_END = b"\0\0\0\0IEND\xaeB`\x82"  # the last chunk of every PNG


@dataclass(frozen=True)
class Record:
    """What a picture was drawn from.

    script: that drew it.  flags: what it was told, as far as it bears on pixels.
    items: of the whole batch, each with its seed and what it was drawn from, as the last bits of
        an image depend on what it was computed beside.  index: of this picture among them.
    solver: with its grid.  run, sha256: the checkpoint.  model: its configuration.
    threads: of the CPU.  versions: of the libraries.
    """

    script: str
    flags: dict[str, Any]
    items: list[dict[str, Any]]
    index: int
    solver: str
    run: str
    sha256: str
    model: dict[str, Any]
    threads: int
    versions: dict[str, str]

    @property
    def text(self) -> dict[str, str]:
        """What a person looks for, and all of it as JSON under "ldm"."""
        shown = {
            **self.items[self.index],
            **self.flags,
            "solver": self.solver,
            "checkpoint": self.sha256,
        }
        texts = {
            key: str(value)
            for key, value in shown.items()
            if value is not None and value is not False  # a seed may be 0
        }
        return {**texts, "run": self.run, _KEY: json.dumps(asdict(self))}


def save_png(image: NDArray[np.uint8], path: Path, text: Mapping[str, str]) -> None:
    """Write a picture (H, W, C) whole or not at all; of two channels the first, of many three."""
    info = PngInfo()
    for key, value in text.items():
        info.add_itxt(key, value)
    if image.shape[2] not in (1, 3, 4):  # not what a PNG holds
        image = image[..., : 1 if image.shape[2] == 2 else 3]
    picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
    # of this process: another that was left behind may still write the same image
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    picture.save(part, format="png", pnginfo=info)
    part.replace(path)


def is_whole(path: Path) -> bool:
    """Whether a PNG is there up to its end, where a full disk or a bad copy cuts it."""
    if not path.is_file() or path.stat().st_size < len(_END):
        return False
    with path.open("rb") as file:
        file.seek(-len(_END), os.SEEK_END)
        return file.read() == _END


def read_record(path: str | Path) -> Record:
    """The record of a picture; ConfigError for a file without one."""
    try:
        with Image.open(path) as image:
            image.load()  # texts may stand behind the pixels
            text = getattr(image, "text", {}).get(_KEY)
    except (OSError, UnidentifiedImageError) as error:
        raise ConfigError(f"--from-png {path}: cannot be read as a picture: {error}") from error
    if text is None:
        raise ConfigError(f"--from-png {path}: holds no record of how it was drawn")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--from-png {path}: its record is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"--from-png {path}: its record is {str(found)[:40]}; expected an object")
    missing = {field.name for field in fields(Record)} - found.keys()
    if missing:
        raise ConfigError(f"--from-png {path}: its record lacks {', '.join(sorted(missing))}")
    record = Record(**{field.name: found[field.name] for field in fields(Record)})
    if problem := _problem(record):
        raise ConfigError(f"--from-png {path}: its record is damaged: {problem}")
    return record


def _problem(record: Record) -> str | None:
    """Which entry of a record is of another type than a script writes."""
    kinds = {"str": str, "int": int, "dict": dict, "list": list}
    for each in fields(Record):
        value, kind = getattr(record, each.name), kinds[str(each.type).partition("[")[0]]
        if type(value) is not kind:
            return f"{each.name} is {str(value)[:40]!r}; expected of type {kind.__name__}"
    seeds = [item.get("seed") if isinstance(item, dict) else None for item in record.items]
    if not all(type(seed) is int for seed in seeds):
        return "items: expected a seed of each"
    if not 0 <= record.index < len(seeds):
        return f"index is {record.index}; expected one of {len(seeds)} items"
    return None if record.threads > 0 else f"threads is {record.threads}; expected 1 or more"
