"""Names that a user may have misspelt."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["require_known"]


def require_known(parameter: str, value: object, known: Iterable[str]) -> None:
    """Raise ValueError, with the nearest known name, unless a parameter's value is one of them.

    The message begins with the parameter, so that a configuration's path can be put before it.
    """
    names = list(known)
    if value in names:
        return
    hint = ""
    if isinstance(value, str):
        nearest = get_close_matches(value, names, n=1, cutoff=0.0)[0]
        hint = f"; did you mean {nearest!r}?"
    raise ValueError(f"{parameter}: {value!r}; expected one of {', '.join(names)}{hint}")
