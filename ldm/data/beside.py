"""Files that lie beside images: a map of labels or a mask for each, of the same name and size."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from ldm.config import ConfigError
from ldm.data.decoding import UNREADABLE, upright_size
from ldm.data.listing import list_files

__all__ = ["paired", "require_one_size", "require_one_size_by_headers"]

_NAMED = 3  # of the images that have none


def paired(
    directory: Path, names: Sequence[str], extensions: Collection[str], *, key: str, what: str
) -> dict[str, Path]:
    """The file below a directory that has the name of an image, but for its extension, for each.

    key: parameter, and what: word for such a file in the message.
    Raises ConfigError that names the first images without any.
    """
    found = {os.path.splitext(name)[0]: name for name in list_files(directory, extensions)[0]}
    alone = [name for name in names if os.path.splitext(name)[0] not in found]
    if alone:
        more = f", and {len(alone) - _NAMED} more" if len(alone) > _NAMED else ""
        raise ConfigError(
            f"{key}: {len(alone)} of {len(names)} images have no {what} in {directory}: "
            f"{', '.join(alone[:_NAMED])}{more}; expected {' or '.join(sorted(extensions)[::-1])} "
            "files of the same names"
        )
    return {name: directory / found[os.path.splitext(name)[0]] for name in names}


def require_one_size(
    image: Path, size: tuple[int, int], other: Path, other_size: tuple[int, int], *, what: str
) -> None:
    """Raise ConfigError that names both files and sizes, (height, width), unless these are equal.

    what: word for the other file.
    """
    if size != other_size:
        sizes = [f"{height} x {width}" for height, width in (other_size, size)]
        raise ConfigError(
            f"{other}: this {what} has {sizes[0]} pixels (height x width), its image {image} has "
            f"{sizes[1]}; expected the same"
        )


def require_one_size_by_headers(
    image: Path, size: tuple[int, int], other: Path, other_size: tuple[int, int], *, what: str
) -> None:
    """As `require_one_size`, of a size that the image's header tells.

    An image whose header differs is looked at again, upright, for it may lie on its side; one that
    cannot be decoded has no size, and is found to be bad when it is used.
    """
    if size == other_size:
        return
    try:
        size = upright_size(image)
    except UNREADABLE:
        return
    require_one_size(image, size, other, other_size, what=what)
