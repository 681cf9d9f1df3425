import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from ldm.config import ConfigError
from ldm.preparation.job import prepare
from ldm.preparation.journal import JOURNAL, Plan
from ldm.preparation.record import Record

NAMES = [f"{i // 4}/{i}.bin" for i in range(12)]


def records(names=NAMES, *, read=None, sized=True):
    """Records of 100 bytes each; `read` collects the names of those whose bytes were read."""

    def of(name):
        def content():
            if read is not None:
                read.append(name)
            return name.encode().ljust(100, b".")

        return Record(name, content, 100 if sized else None)

    return map(of, names)


def stopped_after(source, number):
    """The first `number` records, and then what an interrupted reader raises."""
    for i, record in enumerate(source):
        if i == number:
            raise KeyboardInterrupt
        yield record


@pytest.fixture
def plan(tmp_path):
    source = tmp_path / "source.tar"
    source.write_bytes(b"what the owner published")
    return Plan("train", (source,), {"size": 256}, expected=len(NAMES))


def contents(out):
    """Every file below a directory but the preparation's own, by name."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and not path.name.startswith(".") and path.name != JOURNAL
    }


def times(out):
    return {path: path.stat().st_mtime_ns for path in out.rglob("*.bin")}


def test_records_become_files_under_their_names(tmp_path, plan):
    out = tmp_path / "out"
    assert prepare(records(), out, plan) == NAMES
    assert contents(out) == {name: name.encode().ljust(100, b".") for name in NAMES}
    assert json.loads((out / JOURNAL).read_text())["parts"]["train"]["is_done"]


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("workers", [1, 3])
def test_an_interrupted_preparation_goes_on_without_writing_anything_twice(
    tmp_path, plan, sized, workers
):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prepare(stopped_after(records(sized=sized), 5), out, plan, workers=workers)
    before = times(out)
    assert len(before) == 5
    assert not json.loads((out / JOURNAL).read_text())["parts"]["train"]["is_done"]
    (out / ".prepared-0").write_bytes(b"half a fi")
    read = []
    assert prepare(records(read=read, sized=sized), out, plan, workers=workers) == NAMES
    assert read == NAMES[5:]
    assert before.items() <= times(out).items()
    assert contents(out) == {name: name.encode().ljust(100, b".") for name in NAMES}
    assert not list(out.glob(".prepared-*"))


def test_a_file_of_another_length_is_written_again(tmp_path, plan):
    out = tmp_path / "out"
    prepare(records(), out, plan)
    (out / NAMES[3]).write_bytes(b"cut")
    read = []
    prepare(records(read=read), out, plan)
    assert read == [NAMES[3]]


def test_an_empty_file_of_unknown_length_is_written_again(tmp_path, plan):
    out = tmp_path / "out"
    prepare(records(sized=False), out, plan)
    (out / NAMES[3]).write_bytes(b"")
    read = []
    prepare(records(read=read, sized=False), out, plan)
    assert read == [NAMES[3]]


def test_a_file_of_unknown_length_that_others_wrote_is_not_trusted(tmp_path, plan):
    foreign = tmp_path / "out" / NAMES[0]
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"someone else's")
    prepare(records(sized=False), tmp_path / "out", plan)
    assert foreign.read_bytes().startswith(NAMES[0].encode())


SLOW = """
import sys, time
from pathlib import Path
from ldm.preparation.job import prepare
from ldm.preparation.journal import Plan
from tests.preparation.test_job import records
def slowly():
    for record in records():
        time.sleep(0.05)
        yield record
source, out = map(Path, sys.argv[1:])
prepare(slowly(), out, Plan("train", (source,), {"size": 256}, expected=12))
"""


def test_a_killed_process_leaves_whole_files_and_the_same_call_goes_on(tmp_path, plan):
    out = tmp_path / "out"
    command = [sys.executable, "-c", SLOW, str(plan.sources[0]), str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(times(out)) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = times(out)
    assert 3 <= len(before) < len(NAMES)
    assert all(len(path.read_bytes()) == 100 for path in before)
    assert prepare(records(), out, plan) == NAMES
    assert before.items() <= times(out).items()
    assert contents(out) == {name: name.encode().ljust(100, b".") for name in NAMES}


def test_a_wrong_number_is_refused_and_not_taken_for_done(tmp_path, plan):
    with pytest.raises(ConfigError, match=r"11 files of the part 'train', 1 missing; expected 12"):
        prepare(records(NAMES[:-1]), tmp_path / "out", plan)
    with pytest.raises(ConfigError, match=r"13 files .* too many; expected 12"):
        prepare(records([*NAMES, "more"]), tmp_path / "out", plan)
    journal = json.loads((tmp_path / "out" / JOURNAL).read_text())
    assert not journal["parts"]["train"]["is_done"]


def test_a_wrong_number_known_beforehand_is_refused_before_anything_is_written(tmp_path, plan):
    with pytest.raises(ConfigError, match="11 files"):
        prepare(records(), tmp_path / "out", plan, total=11)
    assert not (tmp_path / "out").exists()


def test_any_number_will_do_when_none_is_expected(tmp_path, plan):
    anything = Plan(plan.part, plan.sources)
    assert len(prepare(records(NAMES[:3]), tmp_path / "out", anything)) == 3


@pytest.mark.parametrize(
    "name", ["../out.txt", "/etc/passwd", "a/../../b", "a//b", "./a", "", "a\\..\\b", "a\0b"]
)
def test_a_name_that_leaves_the_directory_is_refused(tmp_path, plan, name):
    out = tmp_path / "a" / "out"
    with pytest.raises(ConfigError, match="expected a relative name"):
        prepare(records([name]), out, plan)
    assert contents(tmp_path / "a") == {}


def test_a_name_that_comes_twice_is_refused(tmp_path, plan):
    with pytest.raises(ConfigError, match=r"'0/1.bin' twice"):
        prepare(records(["0/1.bin", "0/1.bin"]), tmp_path / "out", plan)


def test_other_settings_and_other_sources_are_refused_in_the_same_directory(tmp_path, plan):
    out = tmp_path / "out"
    prepare(records(), out, plan)
    with pytest.raises(ConfigError, match=r'settings \{"size": 256\}, and now with \{"size": 64\}'):
        prepare(records(), out, Plan("train", plan.sources, {"size": 64}))
    plan.sources[0].write_bytes(b"published anew")
    with pytest.raises(ConfigError, match="begun with sources"):
        prepare(records(), out, plan)
    # another part may have other settings
    prepare(records(["val.bin"]), out, Plan("val", plan.sources, {"size": 64}))


def test_a_source_may_be_moved_between_two_calls(tmp_path, plan):
    out = tmp_path / "out"
    prepare(records(), out, plan)
    moved = tmp_path / "elsewhere" / plan.sources[0].name
    moved.parent.mkdir()
    plan.sources[0].rename(moved)
    read = []
    prepare(records(read=read), out, Plan("train", (moved,), plan.settings, plan.expected))
    assert read == []


def test_a_source_with_another_digest_is_refused_before_anything_is_written(tmp_path, plan):
    out = tmp_path / "out"
    source = plan.sources[0]
    good = hashlib.sha256(source.read_bytes()).hexdigest()
    with pytest.raises(ConfigError, match=f"its SHA-256 is {good}; expected {'0' * 64}"):
        prepare(records(), out, Plan("train", plan.sources, digests=("0" * 64,)))
    assert contents(out) == {}
    prepare(records(), out, Plan("train", plan.sources, digests=(good.upper(),)))
    with pytest.raises(ConfigError, match="2 digests of 1 sources"):
        prepare(records(), out, Plan("train", plan.sources, digests=(good, good)))


def test_a_conversion_is_applied_once_and_names_the_file_that_it_refuses(tmp_path, plan):
    out = tmp_path / "out"
    prepare(records(), out, plan, convert=lambda content: content[:5], workers=2)
    before = times(out)
    assert {len(content) for content in contents(out).values()} == {5}
    prepare(records(), out, plan, convert=lambda content: content[:5])
    assert times(out) == before

    def refuse(content):
        raise ConfigError("not an image")

    with pytest.raises(ConfigError, match=r"0/0.bin: not an image"):
        prepare(records(), tmp_path / "other", plan, convert=refuse)


def test_one_process_at_a_time_prepares_a_directory(tmp_path, plan):
    out = tmp_path / "out"
    out.mkdir()
    with (out / ".prepared.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process prepares it"):
            prepare(records(), out, plan)
    assert prepare(records(), out, plan) == NAMES


def test_what_cannot_be_written_is_said_with_the_directory(tmp_path, plan):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ConfigError, match=r"--out .*out: expected a directory"):
        prepare(records(), tmp_path / "out", plan)
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "0").write_text("a file where a directory should be")
    with pytest.raises(ConfigError, match=r"0/0.bin: cannot be written"):
        prepare(records(), tmp_path / "good", plan)


def test_a_damaged_journal_is_said(tmp_path, plan):
    (tmp_path / JOURNAL).write_text("[]")
    with pytest.raises(ConfigError, match="is not a journal"):
        prepare(records(), tmp_path, plan)
