"""Damaged samples in a whole run: what is trained through, what ends it, and how it says so."""

import pytest

from ldm.cli.train import main
from tests.cli.runs import only_run, unconditional, write
from tests.data.damaged import damaged_directory

pytestmark = pytest.mark.slow


KILLED = """
import os, signal, torch
from torch.utils.data import get_worker_info

class Killed:
    def __len__(self):
        return 24

    def __getitem__(self, index):
        if index == 3 and get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        return {"image": torch.zeros(16, 16, 3, dtype=torch.uint8)}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    damaged_directory(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(place, *words, split="train"):
    """The code of the training command on the list of damaged and whole pictures."""
    config = unconditional()
    params = config["data"]["params"]
    if split == "train":
        del params["validation"]
    params[split] = {
        "target": "ldm.data.folder.ImageList",
        "params": {"file": "images/list.txt", "size": 16},
    }
    write(place / "config.yaml", config)
    words = ["--gpus", "cpu", "-t", "data.params.batch_size=24", *words]
    return main(["-b", "config.yaml", *words])


def errors(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_trains_through_damaged_files_and_lists_them(place, caplog_ldm, workers):
    words = [
        "--max_steps",
        "8",
        "data.params.max_bad_rate=0.1",
        f"data.params.num_workers={workers}",
    ]
    assert start(place, *words) == 0, caplog_ldm.text
    lines = (only_run(place / "logs") / "bad_samples.log").read_text().splitlines()
    names = [line.partition("\t")[0] for line in lines]
    bad = {"truncated.jpg", "bomb.png", "empty.jpg", "text.jpg", "program.jpg", "directory.png"}
    assert sorted(names) == sorted(f"images/{name}" for name in bad)
    assert "images/empty.jpg\tis empty" in lines
    assert (
        "of 192 samples that this process read were bad and have been replaced: " in caplog_ldm.text
    )


def test_a_run_with_too_many_damaged_files_ends_with_their_list_and_a_checkpoint(
    place, caplog_ldm, capfd
):
    assert start(place, "--max_steps", "80", "data.params.max_bad_rate=0.001") == 2
    (error,) = errors(caplog_ldm)
    assert "samples cannot be read, more than data.params.max_bad_rate, 0.001, allows: 1 x" in error
    run = only_run(place / "logs")
    assert f"all are named in {run.relative_to(place)}/bad_samples.log" in error
    assert (run / "bad_samples.log").exists()
    assert (run / "checkpoints/last.ckpt").exists()
    assert "Traceback" not in capfd.readouterr().err


def test_a_damaged_validation_set_is_an_error_before_the_first_step(place, caplog_ldm):
    assert start(place, "--max_steps", "2", split="validation") == 2
    (error,) = errors(caplog_ldm)
    assert "data.params.validation: 5 of its 101 samples cannot be read" in error
    assert not (place / "logs").exists()


def test_a_killed_loader_process_ends_a_run_with_one_error_and_a_checkpoint(place, caplog_ldm):
    config = unconditional()
    params = config["data"]["params"]
    del params["validation"]
    (place / "killed_reader.py").write_text(KILLED)
    params["train"] = {"target": "killed_reader.Killed"}
    write(place / "config.yaml", config)
    words = ["--gpus", "cpu", "-t", "--max_steps", "80", "data.params.num_workers=1"]
    assert main(["-b", "config.yaml", *words]) == 2
    (error,) = errors(caplog_ldm)
    assert "was killed by SIGKILL while it read sample 3; the usual causes are" in error
    assert (only_run(place / "logs") / "checkpoints/last.ckpt").exists()
