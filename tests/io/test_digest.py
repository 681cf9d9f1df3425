"""SHA-256 of files."""

import hashlib
import os

import pytest

from ldm.config import ConfigError
from ldm.io.digest import sha256_of


def test_digest_is_that_of_the_bytes_that_are_there(tmp_path):
    path = tmp_path / "file"
    for content in (b"one", b"two"):
        path.write_bytes(content)
        os.utime(path, ns=(0, len(content) + content[0]))  # a clock too coarse for this test
        assert sha256_of(path) == sha256_of(str(path)) == hashlib.sha256(content).hexdigest()


def test_a_file_that_is_as_it_was_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"long")
    digest = sha256_of(path)
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert sha256_of(path) == digest


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="none: cannot be read: No such file or directory"):
        sha256_of(tmp_path / "none")
