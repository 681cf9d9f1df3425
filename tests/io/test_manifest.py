import os
import random
import shutil

import pytest
import torch

from ldm.io import store
from ldm.io.manifest import MANIFEST, damage, newest_valid
from tests.io.test_store import checkpoint, saved, step_of


def flipped(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


def truncated(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


@pytest.mark.parametrize("change", [flipped, truncated])
def test_every_one_of_a_hundred_random_changes_is_found(tmp_path, change):
    last = saved(tmp_path, 1)
    assert damage(last) is None
    whole, draw = last.read_bytes(), random.Random(0)
    for _ in range(100):
        last.write_bytes(change(whole, draw))
        assert damage(last)
    last.write_bytes(whole)
    assert damage(last) is None


@pytest.mark.parametrize("change", ["flipped", "truncated", "empty", "missing"])
def test_a_damaged_newest_is_passed_by_with_a_warning(tmp_path, caplog_ldm, change):
    saved(tmp_path, 1, 2)
    newest, before = store.resume_points(tmp_path)
    assert newest_valid(tmp_path) == tmp_path / "last.ckpt"
    assert caplog_ldm.text == ""
    if change == "missing":
        newest.unlink()
        (tmp_path / "last.ckpt").unlink()
    else:
        content = newest.read_bytes()
        changed = {"flipped": flipped, "truncated": truncated, "empty": lambda *_: b""}[change]
        newest.write_bytes(changed(content, random.Random(1)))
    assert newest_valid(tmp_path) == before
    assert f"{newest} is passed by" in caplog_ldm.text


def test_the_newest_is_told_by_the_time_of_writing_not_by_the_step(tmp_path):
    saved(tmp_path, 10, 3)  # gone on from an earlier one
    assert step_of(newest_valid(tmp_path)) == 3


def test_files_without_an_entry_count_when_they_can_be_read_wholly(tmp_path, caplog_ldm):
    for step, name in enumerate(("epoch=000000-step=000000001.ckpt", "last.ckpt")):
        torch.save(checkpoint(step), tmp_path / name)
        os.utime(tmp_path / name, (step, step))
    assert newest_valid(tmp_path) == tmp_path / "last.ckpt"
    content = (tmp_path / "last.ckpt").read_bytes()
    tensor = content.index(checkpoint(1)["state_dict"]["p0"].numpy().tobytes())
    (tmp_path / "last.ckpt").write_bytes(content[:tensor] + b"\xff" + content[tensor + 1 :])
    assert step_of(newest_valid(tmp_path)) == 0
    assert "last.ckpt is passed by: its part" in caplog_ldm.text


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x05\x06"])
def test_what_is_no_checkpoint_is_damaged(tmp_path, content):
    (tmp_path / "last.ckpt").write_bytes(content)
    assert damage(tmp_path / "last.ckpt")
    assert newest_valid(tmp_path) is None


def test_weights_alone_are_nothing_to_go_on_from(tmp_path):
    saved(tmp_path, 1)
    weights = {"state_dict": checkpoint(2)["state_dict"], "global_step": 2}
    store.save(weights, tmp_path / "with-entry.ckpt")
    torch.save(weights, tmp_path / "without.ckpt")
    assert step_of(newest_valid(tmp_path)) == 1
    assert damage(tmp_path / "with-entry.ckpt") is None


def test_a_directory_without_checkpoints_or_without_itself_has_none(tmp_path):
    assert newest_valid(tmp_path) is None
    assert newest_valid(tmp_path / "nowhere") is None
    assert "No such file" in damage(tmp_path / "nowhere" / "last.ckpt")


ENTRY = '{"files": [{"file": "%s", "size": %s, "sha256": "", "time": %s, "needs": %s}]}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"files": [{"file": 1}]}',
        b'{"files": ["last.ckpt"]}',
        (ENTRY % ("../a.ckpt", 1, 1, "null")).encode(),
        (ENTRY % ("", 1, 1, "null")).encode(),
        (ENTRY % ("..", 1, 1, "null")).encode(),
        (ENTRY % ("a.ckpt", '"1"', 1, "null")).encode(),
        (ENTRY % ("a.ckpt", 1, '"1"', "null")).encode(),
        (ENTRY % ("a.ckpt", 1, 1, '"../b"')).encode(),
    ],
)
def test_a_damaged_manifest_costs_no_checkpoint(tmp_path, caplog_ldm, content):
    saved(tmp_path, 1, 2)
    (tmp_path / MANIFEST).write_bytes(content)
    assert step_of(newest_valid(tmp_path)) == 2
    assert "judged without it" in caplog_ldm.text
    saved(tmp_path, 3)
    assert step_of(newest_valid(tmp_path)) == 3


def test_a_manifest_may_be_lost_or_the_whole_directory_copied(tmp_path):
    run = tmp_path / "run"
    saved(run, 1, 2)
    shutil.copytree(run, tmp_path / "copy")
    assert step_of(newest_valid(tmp_path / "copy")) == 2
    (run / MANIFEST).unlink()
    assert step_of(newest_valid(run)) == 2
