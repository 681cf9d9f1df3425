"""Every script, stopped half way and started again, leaves what it leaves uninterrupted."""

import json
import os

import pytest

from ldm.cli.exits import EXIT_INTERRUPTED
from tests.preparation.raw import picture, write_lsun, write_tar, write_zip
from tests.preparation.scripts import run

NUMBERED = {f"images/{i:05d}.png": picture(i, (16, 16)) for i in range(6)}
SCENES = {f"data_256/a/abbey/{i:08d}.jpg": picture(i, kind="JPEG") for i in range(6)}
HELD_OUT = {f"val_256/Places365_val_{i:08d}.jpg": picture(i, kind="JPEG") for i in range(6)}
KEYS = {f"{i}ab{i}": picture(i, kind="WEBP") for i in range(6)}

SCRIPTS = {
    "lsun": ("prepare_lsun", write_lsun, "cat_lmdb", KEYS, ["--category", "cat"]),
    "celebahq": ("prepare_celebahq", write_zip, "faces.zip", NUMBERED, []),
    "ffhq": ("prepare_ffhq", write_tar, "faces.tar.gz", NUMBERED, ["--size", 8]),
    "places": ("prepare_places", write_tar, "train.tar", SCENES, []),
    "places_val": ("prepare_places", write_tar, "val.tar", HELD_OUT, ["--part", "val"]),
}


def files(root):
    """Content of every file but the lock, and time of change of every image, by name."""
    paths = [path for path in root.rglob("*") if path.is_file() and path.name != ".prepared.lock"]
    contents = {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
    images = [path for path in paths if path.suffix in (".png", ".jpg", ".webp")]
    return contents, {path.relative_to(root).as_posix(): path.stat().st_mtime_ns for path in images}


def stop_at(monkeypatch, number):
    """Interrupt the process when it has half of a file, counted from 1, and of those after it."""
    replace, seen = os.replace, []

    def replace_or_stop(source, target):
        if source.name.startswith(".prepared-"):
            seen.append(target)
            if len(seen) >= number:
                source.write_bytes(source.read_bytes()[:20])
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_or_stop)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_stopped_half_way_goes_on_without_writing_anything_twice(
    tmp_path, monkeypatch, name
):
    script, write, source, content, words = SCRIPTS[name]
    write(tmp_path / source, content)
    words = [tmp_path / source, "--expect", len(content), "--workers", 1, *words]
    assert run(script, *words, "--out", tmp_path / "whole" / "images") == 0

    again = [*words, "--out", tmp_path / "stopped" / "images"]
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        assert run(script, *again) == EXIT_INTERRUPTED
    found, before = files(tmp_path / "stopped")
    assert len(before) == 3
    assert not json.loads(found["images/prepared.json"])["parts"].popitem()[1]["is_done"]
    assert any(len(each) == 20 for each in found.values())

    assert run(script, *again) == 0
    expected, _ = files(tmp_path / "whole")
    found, after = files(tmp_path / "stopped")
    assert found == expected
    assert len(after) == 6
    assert before.items() <= after.items()
