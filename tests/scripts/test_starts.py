"""Where scripts begin: between two seeds, from the noise of an image, towards a text."""

import os
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.cli.exits import exit_code
from ldm.cli.sampling.loading import checkpoint_and_block, load_model
from ldm.cli.sampling.record import read_record
from ldm.tensor import to_image_tensor, to_uint8
from tests.cli.clips import save_clip
from tests.cli.runs import pixels, script, second_stage, trained, unconditional

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    configs = {"plain": unconditional(), "class": second_stage()}
    return trained(tmp_path_factory.mktemp("runs"), **configs)


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "a.png"
    rows = np.linspace(0, 255, 16)
    levels = np.stack(np.broadcast_arrays(rows[:, None], rows, 128.0), axis=-1)
    Image.fromarray(levels.astype(np.uint8)).save(path)
    return path


def run_script(name, *words):
    return exit_code(script(name), [*map(str, words), "--device", "cpu"])


def all_pixels(out):
    return {path.name: pixels(path).tobytes() for path in sorted(out.glob("[0-9]*.png"))}


def test_a_way_goes_on_where_it_stopped_and_processes_share_it(runs, tmp_path):
    words = [runs["plain"], "--between", 3, 8, "--n", 5, "--steps", 3, "--batch-size", 2]
    assert run_script("sample", *words, "--out", tmp_path / "a") == 0
    whole = all_pixels(tmp_path / "a")
    assert len(set(whole.values())) == 5
    for name in ("00000.png", "00003.png"):
        (tmp_path / "a" / name).unlink()
    # the second of two processes, as the first one starts it, draws the second batch
    second = ["--processes", 2, "--worker", f"1/{os.getppid()}", "--out", tmp_path / "a"]
    assert run_script("sample", *words, *second) == 0
    left = all_pixels(tmp_path / "a")
    assert left == {name: image for name, image in whole.items() if name != "00000.png"}
    assert run_script("sample", *words, "--out", tmp_path / "a") == 0
    assert all_pixels(tmp_path / "a") == whole


def test_an_image_on_a_way_is_drawn_again(runs, tmp_path, caplog_ldm):
    words = [runs["class"], "--classes", 3, "--between", 3, 8, "--n", 3, "--steps", 3]
    assert run_script("sample", *words, "--eta", 1, "--out", tmp_path / "a") == 0
    png = tmp_path / "a/00001.png"
    record = read_record(png)
    want = {"seed": 3, "towards": [8, 0.5], "class_label": 3}
    assert record.items[record.index] == want
    assert run_script("sample", "--from-png", png, "--out", tmp_path / "b") == 0
    assert "the same to the last bit" in caplog_ldm.text


def test_another_way_is_another_job(runs, tmp_path, caplog_ldm):
    words = [runs["plain"], "--n", 2, "--steps", 2, "--out", tmp_path]
    assert run_script("sample", *words, "--between", 3, 8) == 0
    assert run_script("sample", *words, "--between", 3, 9) == 2
    assert "drawn with items" in caplog_ldm.text


def apart(path, given):
    return np.abs(pixels(path).astype(int) - given).mean()


def test_an_inverted_image_comes_back_but_for_what_its_first_stage_loses(
    runs, photograph, tmp_path
):
    words = [runs["plain"], photograph, "--invert", "--strength", 0]
    args = Namespace(run=str(runs["plain"]), config=None, trust=[], device="cpu")
    model = load_model(args, *checkpoint_and_block(args))
    image = to_image_tensor(torch.tensor(pixels(photograph))[None])
    with torch.no_grad():
        kept = to_uint8(model.decode(model.encode(image)))[0].numpy()
    errors = []
    for steps in (10, 100):
        out = tmp_path / str(steps)
        assert run_script("img2img", *words, "--steps", steps, "--out", out) == 0
        errors.append(apart(out / "00000.png", kept))
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 5  # of 255 levels


def test_an_inverted_image_of_which_all_is_replaced_is_that_of_the_seed(runs, photograph, tmp_path):
    words = ["--n", 1, "--steps", 3, "--seed", 4]
    new = [runs["plain"], photograph, "--invert", "--strength", 1]
    assert run_script("img2img", *new, *words, "--out", tmp_path / "a") == 0
    assert run_script("sample", runs["plain"], *words, "--out", tmp_path / "b") == 0
    assert all_pixels(tmp_path / "a") == all_pixels(tmp_path / "b")


def test_variations_are_drawn_again_with_what_the_image_shows(
    runs, photograph, tmp_path, caplog_ldm
):
    words = [runs["class"], photograph, "--class", 3, "--steps", 3, "--strength", 0.3, "--invert"]
    told = ["--source-class", 7, "--scale", 2, "--tile", 8, 8, "--n", 2]
    assert run_script("img2img", *words, *told, "--out", tmp_path / "a") == 0
    images = all_pixels(tmp_path / "a")
    assert len(set(images.values())) == 2
    png = tmp_path / "a/00001.png"
    item = read_record(png).items[1]
    assert (item["class_label"], item["source"]) == (3, {"class_label": 7})
    assert run_script("img2img", "--from-png", png, "--out", tmp_path / "b") == 0
    assert "the same to the last bit" in caplog_ldm.text
    told[1] = 3
    assert run_script("img2img", *words, *told, "--out", tmp_path / "c") == 0
    assert all_pixels(tmp_path / "c") != images


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--invert", "--strength", -0.1], "--strength -0.1: expected 0 to 1"),
        (["--invert", "--strength", "nan"], "--strength nan"),
        (["--source-class", 3], "--source-class: says what --invert begins with"),
        (["--invert", "--source-class", 25], "--source-class 25: expected labels 0 to 24"),
        (
            ["--invert", "--source-prompt", "a"],
            "--source-prompt 'a': this model was trained without captions",
        ),
    ],
)
def test_an_inversion_that_is_none_is_refused(
    runs, photograph, tmp_path, caplog_ldm, words, expected
):
    words = [runs["class"], photograph, "--class", 3, *words, "--out", tmp_path / "out"]
    assert run_script("img2img", *words) == 2
    assert expected in caplog_ldm.text
    assert not (tmp_path / "out").exists()


def test_a_picture_that_clip_has_guided_is_drawn_again_by_the_same_clip(runs, tmp_path, caplog_ldm):
    clip = save_clip(tmp_path / "clip")
    words = [runs["class"], "--classes", 3, "--n", 2, "--steps", 3, "--scale", 2]
    told = ["--clip", clip, "--clip-prompt", "a red", "--clip-scale", 1e4]
    assert run_script("sample", *words, *told, "--out", tmp_path / "a") == 0
    assert run_script("sample", *words, "--out", tmp_path / "plain") == 0
    assert all_pixels(tmp_path / "a") != all_pixels(tmp_path / "plain")
    again = ["--from-png", tmp_path / "a/00001.png", "--out", tmp_path / "b"]
    assert run_script("sample", *again) == 0
    assert "the same to the last bit" in caplog_ldm.text
    weights = (clip / "model.safetensors").read_bytes()
    (clip / "model.safetensors").write_bytes(weights[:-4] + b"\0\0\0?")
    assert run_script("sample", *again) == 2
    assert "clip_sha256 was" in caplog_ldm.text
