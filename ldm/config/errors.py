"""What is said to a user whose configuration, file or override is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

__all__ = ["ConfigError", "did_you_mean", "nearest", "nearest_path", "value_needed", "with_key"]

# entries of a directory: a folder of a million images is not compared name by name
_LOOKED_AT = 1000
_LONGEST = 200  # characters that are compared


class ConfigError(ValueError):
    """Something a user wrote is wrong: the message says where, what, and what was expected.

    A command line shows the message alone and ends with exit code 2.
    """


@contextmanager
def with_key(key: str) -> Iterator[None]:
    """Put the key whose value is being used in front of what a ConfigError inside says."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name most like a misspelt one, or None when nothing is close."""
    # YAML's keys may be numbers, and a long text is no misspelt name
    known = [str(each) for each in names]
    matches = difflib.get_close_matches(str(name)[:_LONGEST], known, n=1, cutoff=0.6)
    return matches[0] if matches else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of an error message: "; did you mean 'gamma'?", or nothing."""
    match = nearest(name, names)
    return f"; did you mean {match!r}?" if match else ""


def value_needed(path: str) -> str:
    """What is said about a key whose value the configuration leaves to its user, as `???`."""
    return f"{path}: a value is needed here, give it in the YAML or as {path}=VALUE"


def nearest_path(path: Path) -> Path | None:
    """The existing path most like a missing one, compared part by part."""
    found = Path(path.anchor)
    for part in path.parts[1 if path.anchor else 0 :]:
        if len(part) > _LONGEST:  # no name of a file: the system would not even look for it
            return None
        if (found / part).exists():
            found /= part
            continue
        entries = islice(found.iterdir(), _LOOKED_AT) if found.is_dir() else ()
        match = nearest(part, [entry.name for entry in entries])
        if match is None:
            return None
        found /= match
    return found
