"""Images of a model without classes, drawn towards those that a classifier sees."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.cli.exits import exit_code
from ldm.cli.sampling.record import read_record
from ldm.cli.train import train
from tests.cli.runs import pixels, script

pytestmark = pytest.mark.slow

SHORT = ["--max_steps", "2", "--limit_val_batches", "1", "--gpus", "cpu"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    names = ("ddpm", "classifier-pixel", "ldm-uncond", "autoencoder-kl")
    return {
        name: train(["-b", f"configs/tiny/{name}.yaml", "-t", "-l", str(place), *SHORT]).path
        for name in names
    }


def sample(*words):
    words = [*map(str, words), "--steps", "3", "--n", "2", "--device", "cpu"]
    return exit_code(script("sample"), words)


def test_a_classifier_changes_what_is_drawn_and_no_scale_leaves_it(runs, tmp_path):
    words = [runs["ddpm"], "--classes", 3, 5, "--classifier", runs["classifier-pixel"]]
    drawn = {}
    for scale in (0, 1, 1e4):
        out = tmp_path / str(scale)
        assert sample(*words, "--classifier-scale", scale, "--out", out) == 0
        drawn[scale] = [pixels(out / f"{index:05}.png") for index in range(4)]
    assert sample(runs["ddpm"], "--n", 4, "--out", tmp_path / "plain") == 0
    plain = [pixels(tmp_path / "plain" / f"{index:05}.png") for index in range(2)]
    assert np.array_equal(drawn[0][:2], plain)
    assert not np.array_equal(drawn[1e4], drawn[0])


def test_a_guided_picture_is_drawn_again(runs, tmp_path, caplog_ldm):
    words = [runs["ddpm"], "--classes", 3, "--classifier", runs["classifier-pixel"]]
    assert sample(*words, "--classifier-scale", 50, "--out", tmp_path / "a") == 0
    words = ["--from-png", str(tmp_path / "a/00001.png"), "--out", str(tmp_path / "b")]
    assert exit_code(script("sample"), words) == 0
    assert "the same to the last bit" in caplog_ldm.text


def test_a_classifier_that_lies_elsewhere_by_now_is_given_again(runs, tmp_path, caplog_ldm):
    place = shutil.copytree(runs["classifier-pixel"], tmp_path / "classifier")
    words = [runs["ddpm"], "--classes", 3, "--classifier", place, "--classifier-scale", 50]
    assert sample(*words, "--out", tmp_path / "a") == 0
    moved = shutil.move(place, tmp_path / "moved")
    again = ["--from-png", tmp_path / "a/00001.png", "--out", tmp_path / "b"]
    assert sample(*again) == 2
    assert sample(*again, "--classifier", moved) == 0
    assert "00001.png: the same to the last bit" in caplog_ldm.text
    assert read_record(tmp_path / "b/00001.png").flags["classifier"] == str(moved)
    (checkpoint,) = Path(moved).glob("checkpoints/last.ckpt")
    state = torch.load(checkpoint, weights_only=True)
    torch.save({**state, "global_step": 7}, checkpoint)
    assert sample(*again, "--classifier", moved) == 2
    assert "classifier_sha256 was" in caplog_ldm.text


@pytest.mark.parametrize(
    ("model", "classifier", "words", "expected"),
    [
        ("ddpm", "autoencoder-kl", ["--classes", 1], "AutoencoderKL, expected a LatentClassifier"),
        ("ddpm", "classifier-pixel", [], "--classes is needed"),
        ("ddpm", "classifier-pixel", ["--classes", 24], "knows labels 0 to 23"),
        (
            "ldm-uncond",
            "classifier-pixel",
            ["--classes", 1],
            "only in the process that both",
        ),
    ],
)
def test_a_classifier_that_does_not_fit_is_refused(
    runs, tmp_path, caplog_ldm, model, classifier, words, expected
):
    words = [runs[model], *words, "--classifier", runs[classifier], "--out", tmp_path / "out"]
    assert sample(*words) == 2
    assert expected in caplog_ldm.text
    assert not (tmp_path / "out").exists()
