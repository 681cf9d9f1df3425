"""Which file it was: the SHA-256 of its bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ldm.config import ConfigError

__all__ = ["sha256_of"]


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits; ConfigError when it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
