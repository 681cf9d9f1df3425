"""Long streams in pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

__all__ = ["chunks"]

_T = TypeVar("_T")


def chunks(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Consecutive items in lists of `size`, the last of them shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
