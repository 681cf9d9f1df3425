import errno
import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch

from ldm.io import atomic, store
from ldm.io.manifest import damage, entries, newest_valid

POINTS = (
    "begin",
    "middle",
    "written",
    "synced",
    "verified",
    "renamed",
    "manifest",
    "last",
    "pruned",
)


def checkpoint(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    weights = {f"p{n}": torch.randn(50, generator=generator) for n in range(4)}
    return {"global_step": step, "epoch": 0, "state_dict": weights, "optimizer_states": []}


def saved(directory, *steps, keep=2):
    for step in steps:
        store.save(checkpoint(step), directory / "last.ckpt", keep=keep)
    return directory / "last.ckpt"


def step_of(path):
    return torch.load(path, weights_only=True)["global_step"]


class Killed(BaseException): ...


def _kill(at, point):
    if at == point:
        raise Killed


@pytest.mark.parametrize("point", POINTS)
def test_at_every_point_of_a_save_there_is_a_valid_newest_checkpoint(tmp_path, monkeypatch, point):
    last = saved(tmp_path, 1, 2)

    def kill(at):
        if at == point:
            raise Killed

    with monkeypatch.context() as killer:
        killer.setattr(atomic, "reached", kill)
        with pytest.raises(Killed):
            saved(tmp_path, 3)
    is_named = POINTS.index(point) >= POINTS.index("renamed")
    assert step_of(newest_valid(tmp_path)) == (3 if is_named else 2)
    assert step_of(last) in (2, 3)
    assert damage(last) is None
    saved(tmp_path, 4)
    assert step_of(newest_valid(tmp_path)) == step_of(last) == 4
    assert len(list(tmp_path.glob("resume-*"))) == 2


KILLED = """
import os, sys
from pathlib import Path
from ldm.io import atomic
from tests.io.test_store import saved
here = Path()
saved(here, 1, 2)
atomic.reached = lambda point: point == sys.argv[1] and os.kill(os.getpid(), 9)
saved(here, 3)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("point", "newest"), [("middle", 2), ("renamed", 3)])
def test_a_process_killed_during_a_save_leaves_the_newest_and_half_a_file_that_the_next_removes(
    tmp_path, point, newest
):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", KILLED, point]
    ended = subprocess.run(words, cwd=tmp_path, env=environment, check=False)
    assert ended.returncode == -9
    assert step_of(newest_valid(tmp_path)) == newest
    assert bool(list(tmp_path.glob(".*"))) == (point == "middle")
    saved(tmp_path, 4)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_write_that_fails_half_way_leaves_the_checkpoint_before_and_no_half(
    tmp_path, monkeypatch, fault
):
    last = saved(tmp_path, 1)
    before = sorted(os.listdir(tmp_path))

    def fail(point):
        if point == "middle":
            raise fault

    monkeypatch.setattr(atomic, "reached", fail)
    with pytest.raises(type(fault)):
        saved(tmp_path, 2)
    assert step_of(last) == 1
    assert sorted(os.listdir(tmp_path)) == before


def test_a_bounded_number_of_steps_is_kept_each_with_its_newest_file(tmp_path):
    last = saved(tmp_path, 1, 2, 2, 3, 3)
    assert [path.name for path in store.resume_points(tmp_path)] == [
        "resume-000000003-2.ckpt",
        "resume-000000002-2.ckpt",
    ]
    assert last.samefile(tmp_path / "resume-000000003-2.ckpt")
    saved(tmp_path, 4, 5, keep=3)
    assert [step_of(path) for path in store.resume_points(tmp_path)] == [5, 4, 3]


def test_files_of_other_names_are_left_alone(tmp_path):
    names = ("resume-mine.ckpt", "epoch=1-step=1.ckpt", "step=1.ckpt")
    for name in names:
        (tmp_path / name).touch()
    saved(tmp_path, 1, 2, 3, 4)
    assert all((tmp_path / name).exists() for name in names)


def test_a_file_system_without_links_gets_a_copy(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    last = saved(tmp_path, 1, 2)
    assert step_of(last) == 2
    assert last.stat().st_nlink == 1
    assert damage(last) is None
    assert newest_valid(tmp_path) == last


def test_a_checkpoint_written_over_another_of_its_name_is_never_taken_for_damaged(
    tmp_path, monkeypatch
):
    path = tmp_path / "epoch=000000-step=000000001.ckpt"
    store.save(checkpoint(1), path)

    def kill(at):
        assert damage(path) is None
        if at == "renamed":
            raise Killed

    monkeypatch.setattr(atomic, "reached", kill)
    with pytest.raises(Killed):
        store.save(checkpoint(2), path)
    assert step_of(newest_valid(tmp_path)) == 2


def test_bytes_that_the_disk_changes_are_found_before_the_file_gets_its_name(tmp_path, monkeypatch):
    last = saved(tmp_path, 1)

    def rot(at):
        if at == "synced":
            (half,) = tmp_path.glob(".resume*")
            half.write_bytes(half.read_bytes()[:-1] + b"x")

    monkeypatch.setattr(atomic, "reached", rot)
    with pytest.raises(OSError, match="other bytes than were written"):
        saved(tmp_path, 2)
    assert step_of(newest_valid(tmp_path)) == step_of(last) == 1


def test_removing_forgets_the_entry_and_minds_no_missing_file(tmp_path):
    path = tmp_path / "best.ckpt"
    store.save(checkpoint(1), path)
    store.remove(path)
    store.remove(path)
    assert list(tmp_path.iterdir()) == [tmp_path / "manifest.json"]
    assert not entries(tmp_path)


@pytest.mark.parametrize("is_noted", [True, False])
def test_one_of_the_best_that_is_newer_than_the_last_becomes_it(tmp_path, monkeypatch, is_noted):
    last = saved(tmp_path, 1, 2)
    best = tmp_path / "best.ckpt"
    monkeypatch.setattr(atomic, "reached", lambda at: _kill(at, None if is_noted else "renamed"))
    with nullcontext() if is_noted else pytest.raises(Killed):
        store.save(checkpoint(3), best)
    monkeypatch.undo()
    (tmp_path / ".resume-000000003.ckpt.partial").write_bytes(b"half")  # killed after it
    store.adopt(newest_valid(tmp_path))
    names = {"best.ckpt", "last.ckpt", "manifest.json", "resume-000000002.ckpt"}
    assert set(os.listdir(tmp_path)) == names | {"resume-000000003.ckpt"}
    assert last.read_bytes() == best.read_bytes()
    assert newest_valid(tmp_path) == last
    assert damage(last) is None


def test_one_of_the_best_that_is_older_than_the_last_stays_what_it_is(tmp_path):
    store.save(checkpoint(1), tmp_path / "best.ckpt")
    last = saved(tmp_path, 2)
    store.adopt(tmp_path / "best.ckpt")
    assert step_of(last) == 2
    assert not (tmp_path / "resume-000000001.ckpt").exists()


def test_best_checkpoints_that_were_to_be_removed_are(tmp_path):
    def best(step):
        return tmp_path / f"epoch=000000-step={step:09}.ckpt"

    for path, step in ((best(1), 1), (best(2), 2), (tmp_path / "mine.ckpt", 2), (best(3), 3)):
        store.save(checkpoint(step), path)
    newest = saved(tmp_path, 4)
    store.save(checkpoint(5), best(5))
    store.remove_surplus(newest, {best(3).name})
    left = {path.name for path in tmp_path.glob("*.ckpt")}
    names = {"mine.ckpt", best(3).name, best(5).name, "last.ckpt", "resume-000000004.ckpt"}
    assert left == names
    assert names - {"last.ckpt"} == {name for name in entries(tmp_path) if name.endswith(".ckpt")}
