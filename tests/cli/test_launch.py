import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from ldm.cli import launch
from ldm.cli.launch import agreed, process_count
from ldm.cli.rundir import RunDir
from ldm.cli.train import _check_processes
from ldm.config import ConfigError

RUN = RunDir(Path("logs/1_x"), "1", Path("logs/1_x/checkpoints/last.ckpt"), is_anew=True)


def never():
    raise AssertionError("only the first process decides")


def fails():
    raise ConfigError("no such run")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Of no launcher, and put back afterwards."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_NTASKS", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LDM_RUN", "")
    monkeypatch.setattr(launch, "_LIMIT", timedelta(seconds=0.3))


@pytest.fixture
def srun(monkeypatch):
    """Makes this process one of two that srun started."""
    environment = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return lambda rank: monkeypatch.setenv("SLURM_PROCID", str(rank))


@pytest.fixture
def torchrun(monkeypatch):
    """Makes this process one of two that torchrun started, which keeps a store."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
    for name, value in (environment | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
        monkeypatch.setenv(name, value)
    yield lambda rank: monkeypatch.setenv("RANK", str(rank))
    del store


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_all_processes_do_what_the_first_decides(launcher, request, tmp_path):
    become = request.getfixturevalue(launcher)
    become(0)
    assert process_count() == 2
    assert agreed(lambda: RUN, tmp_path) == RUN
    become(1)
    assert agreed(never, tmp_path) == RUN


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_an_error_of_the_first_process_is_that_of_all(launcher, request, tmp_path):
    become = request.getfixturevalue(launcher)
    for rank, decide in enumerate((fails, never)):
        become(rank)
        with pytest.raises(ConfigError, match="no such run"):
            agreed(decide, tmp_path)


def test_a_process_that_lightning_started_is_told_by_its_parent(tmp_path, monkeypatch):
    run = RunDir(Path("logs/1_x"), "1")
    agreed(lambda: run, tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(os, "getppid", os.getpid)  # as if this were the child
    assert agreed(never, tmp_path) == run
    assert not list(tmp_path.iterdir())


def test_what_an_ancestor_decided_is_no_word_of_this_launch(tmp_path, monkeypatch):
    agreed(lambda: RUN, tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match="process 1 of several, but not how many"):
        agreed(never, tmp_path)


def test_a_job_that_is_requeued_agrees_anew(srun, tmp_path, monkeypatch):
    srun(0)
    agreed(lambda: RUN, tmp_path)
    srun(1)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(ConfigError, match="not written by the first process in 0:00:00"):
        agreed(never, tmp_path)


def test_what_an_older_launch_left_behind_is_not_heard(tmp_path, monkeypatch):
    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "moon", "MASTER_PORT": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    agreed(lambda: RUN, tmp_path)
    monkeypatch.setenv("RANK", "1")
    assert agreed(never, tmp_path) == RUN
    (path,) = tmp_path.glob(".starting/*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"time": 0}))
    with pytest.raises(ConfigError, match="not written by the first process"):
        agreed(never, tmp_path)


def test_one_process_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as Lightning leaves it behind in its first process
    assert agreed(lambda: RUN, tmp_path) == RUN
    assert process_count() == 1
    assert not list(tmp_path.iterdir())


def test_processes_that_lightning_does_not_count_on_are_an_error(srun):
    srun(0)
    with pytest.raises(ConfigError, match=r"2 processes .* num_nodes is 1; give --devices"):
        _check_processes(1)
    _check_processes(2)
