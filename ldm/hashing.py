"""Numbers that are a function of names, the same in every process and on every machine."""

from __future__ import annotations

from hashlib import blake2b

__all__ = ["hash64"]


def hash64(name: bytes) -> int:
    """64 bits of BLAKE2b, 0..2^64 - 1, evenly spread over names."""
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "big")
