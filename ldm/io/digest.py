"""Which file it was: the SHA-256 of its bytes."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from ldm.config import ConfigError

__all__ = ["sha256_of"]


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits; ConfigError when it cannot be read.

    A file that is as it was is not read again in this process: a model's checks ask, then it does.
    """
    try:
        found = Path(path).stat()
        version = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        return _sha256_of(Path(path).absolute(), version)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


@lru_cache
def _sha256_of(path: Path, _version: tuple[int, ...]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
