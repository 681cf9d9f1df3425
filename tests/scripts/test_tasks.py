"""The tasks from end to end, a few steps long."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.cli.exits import exit_code
from ldm.cli.scene_tasks import CONFIGS, TASKS, task_table
from ldm.config import instantiate_model, load, to_plain
from tests.cli.runs import ROOT, script_module


@pytest.fixture
def module(monkeypatch):
    """The script as a module, where it is started from."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return script_module("tasks")


@pytest.fixture
def first_stage(module, tmp_path):
    """The run of a first stage that is said to be trained."""
    model = instantiate_model(to_plain(load([CONFIGS / "autoencoder.yaml"]))["model"])
    run = tmp_path / "2026-01-01T00-00-00_autoencoder"
    (run / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": model.state_dict()}, run / "checkpoints" / "last.ckpt")
    (run / "trained").touch()


@pytest.mark.slow
@pytest.mark.usefixtures("first_stage")
def test_a_task_is_trained_drawn_measured_and_not_done_again(module, tmp_path, capfd):
    words = ["--tasks", "semantic", "--longer", "0.032", "--n", "3", "--processes", "1"]
    words += ["--logdir", str(tmp_path)]
    module.tasks(words)
    table = (tmp_path / "table.md").read_text()
    assert "| pixels |" in table
    assert "| semantic, 2 times the side | of things |" in table
    assert table in capfd.readouterr().out
    report = json.loads((tmp_path / "semantic" / "report.json").read_text())
    for factor, sides in report["sides"].items():
        # what is measured is known of the scenes themselves, and of plain white
        assert sides["real"]["pixels"] > 0.98
        assert sides["without"]["of things"] == 0
        name = "sheet.png" if factor == "1" else f"sheet-{factor}.png"
        with Image.open(tmp_path / "semantic" / name) as sheet:
            assert np.asarray(sheet).std() > 0
    runs = sorted(tmp_path.glob("20*"))
    assert [run.name.rpartition("_")[2] for run in runs] == ["autoencoder", "semantic"]
    module.tasks(words)
    assert sorted(tmp_path.glob("20*")) == runs


def test_every_task_has_its_configuration(module):
    names = {path.stem for path in CONFIGS.glob("*.yaml")} - {"autoencoder"}
    assert names == TASKS.keys()


def test_the_table_has_a_row_per_figure_and_side(module):
    figures = {"pixels": 0.5, "of things": 0.25}
    sides = dict.fromkeys(("drawn", "without", "other", "real"), figures) | {"unguided": None}
    table = task_table({"semantic": {"minutes": 2.04, "sides": {"1": sides, "2": sides}}})
    assert len(table.splitlines()) == 2 + 4
    assert "| semantic (2.0 min) | pixels | 50.0% |  | 50.0% | 50.0% | 50.0% (white) |" in table
    assert "| semantic, 2 times the side | of things | 25.0% |" in table


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--longer", "0", "--tasks", "pixels"], "--longer 0.0: expected more than 0"),
        (["--n", "1"], "--n 1: expected 2 or more"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(module, tmp_path, caplog_ldm, words, message):
    assert exit_code(module.tasks, [*words, "--logdir", str(tmp_path)]) == 2
    assert message in caplog_ldm.text


def test_a_batch_is_not_shared_by_processes_that_would_leave_some_of_it(
    module, tmp_path, caplog_ldm, monkeypatch
):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    words = ["--tasks", "pixels", "--processes", "3", "--logdir", str(tmp_path)]
    assert exit_code(module.tasks, words) == 2
    assert "--processes 3: expected a divisor of the 32 images" in caplog_ldm.text


def test_a_clip_that_is_there_is_not_trained_again(module, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("ldm.cli.scene_tasks.run_script", lambda *words: started.append(words[0]))
    args = argparse.Namespace(logdir=str(tmp_path), gpus="cpu")
    TASKS["retrieval"].before(args)
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "model.safetensors").touch()
    TASKS["retrieval"].before(args)
    assert started == [
        "scripts/train_clip.py",
        "scripts/build_index.py",
        "scripts/build_index.py",
    ]
