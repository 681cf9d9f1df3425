import os
import re
import subprocess
import sys

import pytest

from ldm.cli.locks import held
from ldm.config import ConfigError

HOLDER = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
HOLDER += "f.write('process 1 on moon'); f.flush(); print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def lock(tmp_path):
    return tmp_path / ".lock"


def test_what_is_held_says_by_whom_and_nobody_else_can_hold_it(lock):
    with held(lock, "the run"):
        assert lock.read_text().startswith(f"process {os.getpid()} on ")
        wrong = rf"the run is being trained by process {os.getpid()} on .*, since \d.*; wait"
        with pytest.raises(ConfigError, match=wrong), held(lock, "the run"):
            pass
        assert lock.exists()


def test_what_was_held_is_given_back_and_leaves_nothing(lock):
    for _ in range(2):
        with pytest.raises(RuntimeError), held(lock, "the run"):
            raise RuntimeError
        assert not lock.exists()


def test_only_the_first_process_of_several_holds(lock, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with held(lock, "the run"):
        assert not lock.exists()


def test_the_system_gives_back_what_a_killed_process_held(lock):
    words = [sys.executable, "-S", "-c", HOLDER, str(lock)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=re.escape("process 1 on moon")), held(lock, "it"):
            pass
        other.kill()
    assert lock.exists()
    with held(lock, "it"):
        assert "moon" not in lock.read_text()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_does_not_hold_on_after_its_parent(lock):
    read, write = os.pipe()
    with held(lock, "the run"):
        child = os.fork()
        if not child:
            os.close(write)
            os.read(read, 1)  # until the parent closes its end
            os._exit(0)
    try:
        with held(lock, "the run"):
            assert lock.exists()
    finally:
        os.close(write)
        os.close(read)
        os.waitpid(child, 0)
