"""The quickstart from end to end, a few steps long."""

import os
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image

from tests.cli.runs import ROOT

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
    done = quickstart("--longer", 0.05, "--captions", 6, "--logdir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"caption score: \d+\.\d% of 6 held-out captions", done.stdout)
    first, second = sorted(tmp_path.glob("20*"), key=lambda run: run.name.endswith("_ldm"))
    for run, steps in ((first, 130), (second, 60)):
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
