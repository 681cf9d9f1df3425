"""The quickstart from end to end, a few steps long."""

import os
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image

from ldm.cli.exits import exit_code
from ldm.data.shapes_verifier import Report
from tests.cli.runs import ROOT, script_module

pytestmark = pytest.mark.slow


def quickstart(*words):
    return subprocess.run(
        [sys.executable, "scripts/quickstart.py", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_quickstart_trains_both_stages_draws_and_scores(tmp_path):
    done = quickstart("--longer", 0.06, "--captions", 6, "--logdir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"caption score: \d+\.\d% of 6 held-out captions", done.stdout)
    first, second = sorted(tmp_path.glob("20*"), key=lambda run: run.name.endswith("_ldm"))
    for run, steps in ((first, 156), (second, 72)):
        last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        assert last["global_step"] == steps
    assert len(list((tmp_path / "samples").glob("0*.png"))) == 6
    for name in ("samples/grid.png", "losses.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > picture.height / 2 > 16
    assert f"txt2img.py {second}" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--longer", 0], "--longer 0.0: expected more than 0"),
        (["--captions", 0], "--captions 0: expected 1 or more"),
        (["--gpus", "0,1"], "--gpus 0,1: no CUDA device was found"),  # as main.py says it
    ],
)
def test_the_quickstart_says_in_one_line_what_is_wrong(tmp_path, words, message):
    done = quickstart(*words, "--logdir", tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def module(monkeypatch):
    """The script as a module, where it is started from."""
    monkeypatch.chdir(ROOT)
    return script_module("quickstart")


def test_a_missing_extra_is_an_error_before_anything_is_trained(
    module, tmp_path, monkeypatch, caplog_ldm
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    logdir = tmp_path / "logs"
    assert exit_code(module.quickstart, ["--logdir", str(logdir)]) == 2
    assert "matplotlib" in caplog_ldm.text
    assert "pip install '.[demo]'" in caplog_ldm.text
    assert not logdir.exists()


def test_the_score_is_shown_whatever_becomes_of_the_plot(module, tmp_path, monkeypatch, capsys):
    def no_plot(*_):
        raise RuntimeError("no plot")

    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    report = Report(accuracy=0.5, attributes={"shape": 0.75}, count=4)
    monkeypatch.setattr(module, "train_stage", lambda *_: tmp_path)
    monkeypatch.setattr(module, "_draw_and_score", lambda *_: report)
    monkeypatch.setattr(module, "_plot", no_plot)
    with pytest.raises(RuntimeError, match="no plot"):
        module.quickstart([])
    assert "caption score: 50.0% of 4 held-out captions" in capsys.readouterr().out


@pytest.mark.parametrize(("gpus", "device"), [("cpu", "cpu"), ("0", "cpu"), ("0,", "auto")])
def test_pictures_are_drawn_where_training_was(module, tmp_path, gpus, device):
    words = module._drawing(tmp_path, tmp_path, module._parse(["--gpus", gpus]))
    assert words[words.index("--device") + 1] == device
