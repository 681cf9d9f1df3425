"""Jobs of many images: records that draw a picture again, resuming, several processes."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.cli.exits import exit_code
from ldm.cli.sampling.record import read_record
from tests.cli.runs import ROOT, pixels, script, second_stage, trained, unconditional

pytestmark = pytest.mark.slow


def sample(*words):
    return exit_code(script("sample"), [*map(str, words), "--device", "cpu"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run directory of an unconditional model and of one of classes."""
    configs = {"plain": unconditional(), "class": second_stage()}
    return trained(tmp_path_factory.mktemp("runs"), **configs)


def all_pixels(out):
    return {path.name: pixels(path).tobytes() for path in sorted(out.glob("[0-9]*.png"))}


def test_a_png_is_drawn_again_to_the_last_bit(runs, tmp_path, caplog_ldm):
    words = ["--classes", 3, 7, "--n", 3, "--steps", 4, "--eta", 1, "--scale", 2, "--seed", 5]
    assert sample(runs["class"], *words, "--batch-size", 4, "--out", tmp_path / "a") == 0
    for name in ("00002.png", "00005.png"):
        png = tmp_path / "a" / name
        assert sample("--from-png", png, "--out", tmp_path / "b") == 0
        assert f"{name}: the same to the last bit" in caplog_ldm.text
        assert np.array_equal(pixels(tmp_path / "b" / name), pixels(png))
        assert Image.open(tmp_path / "b" / name).text == Image.open(png).text


def test_the_record_of_a_png_says_all_that_it_was_drawn_from(runs, tmp_path):
    words = ["--classes", 3, "--n", 2, "--steps", 4, "--scale", 2, "--seed", 5]
    assert sample(runs["class"], *words, "--out", tmp_path) == 0
    record = read_record(tmp_path / "00001.png")
    assert record.items[record.index] == {"seed": 6, "class_label": 3}
    assert record.flags["steps"] == 4
    assert record.solver.startswith("DDIM(")
    assert record.model["target"] == "ldm.models.diffusion.ddpm.LatentDiffusion"
    assert len(record.sha256) == 64


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("script", "scripts/txt2img.py drew it"),
        ("sha256", "name the one it was drawn with"),
        ("run", "nowhere, which drew it, is not there"),
        ("none", "holds no record"),
        ("text", "cannot be read as a picture"),
    ],
)
def test_a_png_that_cannot_be_drawn_again_says_why(runs, tmp_path, caplog_ldm, change, expected):
    assert sample(runs["plain"], "--n", 1, "--steps", 2, "--out", tmp_path / "a") == 0
    png = tmp_path / "changed.png"
    with Image.open(tmp_path / "a" / "00000.png") as image:
        told = json.loads(image.text["ldm"])
        told |= {"script": {"script": "txt2img"}, "run": {"run": "nowhere"}}.get(change, {})
        if change == "sha256":
            told["sha256"] = "0" * 64
        info = PngInfo()
        if change != "none":
            info.add_itxt("ldm", json.dumps(told))
        image.save(png, pnginfo=info)
    if change == "text":
        png.write_text("no picture")
    assert sample("--from-png", png, "--out", tmp_path / "b") == 2
    assert expected in caplog_ldm.text
    assert not (tmp_path / "b").exists()


def test_a_job_goes_on_where_it_stopped_and_gives_the_same_images(runs, tmp_path):
    words = [runs["plain"], "--n", 10, "--steps", 3, "--batch-size", 4]
    assert sample(*words, "--out", tmp_path / "a", "--npz") == 0
    whole = all_pixels(tmp_path / "a")
    assert sample(*words, "--out", tmp_path / "b") == 0
    for name in ("00001.png", "00006.png", "00009.png"):
        (tmp_path / "b" / name).unlink()
    kept = (tmp_path / "b" / "00000.png").stat().st_mtime_ns
    untouched = (tmp_path / "b" / "job.json").stat().st_mtime_ns
    assert sample(*words, "--out", tmp_path / "b") == 0
    assert all_pixels(tmp_path / "b") == whole
    assert len(set(whole.values())) == 10
    assert (tmp_path / "b" / "job.json").stat().st_mtime_ns == untouched
    assert (tmp_path / "b" / "00000.png").stat().st_mtime_ns > kept  # its batch was not whole
    arrays = np.load(tmp_path / "a" / "images.npz")["arr_0"]
    assert (arrays.shape, arrays.dtype) == ((10, 16, 16, 3), np.uint8)
    assert [each.tobytes() for each in arrays] == list(whole.values())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--steps", 4], "drawn with steps 3, not 4"),
        (["--seed", 1], "drawn with seed 0, not 1"),
        (["--n", 3], "drawn with images 2, not 3"),
    ],
)
def test_images_of_another_job_are_not_mixed_in(runs, tmp_path, caplog_ldm, words, expected):
    start = [runs["plain"], "--n", 2, "--steps", 3, "--out", tmp_path]
    assert sample(*start) == 0
    before = all_pixels(tmp_path)
    assert sample(*start, *words) == 2
    assert expected in caplog_ldm.text
    assert all_pixels(tmp_path) == before


def test_pictures_of_somebody_else_are_not_replaced(runs, tmp_path, caplog_ldm):
    (tmp_path / "00000.png").write_text("mine")
    assert sample(runs["plain"], "--n", 1, "--out", tmp_path) == 2
    assert "holds images already" in caplog_ldm.text
    assert (tmp_path / "00000.png").read_text() == "mine"


def start(*words):
    """Start the script in a process of its own, which has a group of its own."""
    return subprocess.Popen(
        [sys.executable, ROOT / "scripts" / "sample.py", *map(str, words), "--device", "cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )


def code_of(process):
    """The exit code of a job, which no test outlives."""
    try:
        return process.wait(timeout=900)  # a hang; a busy machine takes minutes
    finally:
        process.kill()
        process.wait()


def test_two_processes_killed_half_way_end_as_one_unbroken_run(runs, tmp_path):
    words = [runs["plain"], "--n", 48, "--steps", 20, "--batch-size", 2, "--skip-grid"]
    words += ["--processes", 2]
    whole = start(*words, "--out", tmp_path / "a")
    assert code_of(whole) == 0
    killed = start(*words, "--out", tmp_path / "b")
    while len(all_pixels(tmp_path / "b")) < 10:
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)  # the other process finds out by itself
    killed.wait()
    left = all_pixels(tmp_path / "b")
    assert 10 <= len(left) < 48
    (tmp_path / "b" / "00040.png.1.part").write_text("cut off")
    assert code_of(start(*words, "--out", tmp_path / "b")) == 0
    assert all_pixels(tmp_path / "b") == all_pixels(tmp_path / "a")
    assert not list(tmp_path.glob("*/*.part"))
    assert len(set(all_pixels(tmp_path / "a").values())) == 48


def test_a_process_without_its_first_one_draws_nothing(runs, tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    words = [runs["plain"], "--n", 4, "--batch-size", 1, "--steps", 2, "--processes", 2]
    words += ["--out", tmp_path, "--worker", f"1/{gone.pid}"]
    assert code_of(start(*words)) == 1
    assert not list(tmp_path.iterdir())


def test_a_process_that_fails_ends_the_job(runs, tmp_path, monkeypatch):
    words = [runs["plain"], "--n", 4, "--batch-size", 1, "--steps", 2, "--out", tmp_path]
    assert sample(*words, "--gpus", "0,1") == 2


def test_published_flags_are_ours_under_other_names(runs, tmp_path):
    ours = ["--steps", 3, "--eta", 0.5, "--batch-size", 2, "--size", 16, 24, "--n", 3]
    theirs = ["-c", 3, "-e", 0.5, "--batch_size", 2, "--H", 16, "--W", 24, "--n_samples", 3]
    assert sample(runs["plain"], *ours, "--out", tmp_path / "a") == 0
    assert sample(*theirs, "-r", runs["plain"], "--outdir", tmp_path / "b") == 0
    assert all_pixels(tmp_path / "a") == all_pixels(tmp_path / "b")


def test_the_run_may_stand_anywhere_among_the_flags(runs, tmp_path):
    assert sample("--n", 1, "--steps", 2, "--out", tmp_path / "a", runs["plain"]) == 0
    assert sample("--n", 1, runs["plain"], "--steps", 2, "--out", tmp_path / "b") == 0
    assert all_pixels(tmp_path / "a") == all_pixels(tmp_path / "b")


def test_a_picture_is_not_drawn_over_itself(runs, tmp_path, caplog_ldm):
    assert sample(runs["plain"], "--n", 1, "--steps", 2, "--out", tmp_path) == 0
    before = (tmp_path / "00000.png").read_bytes()
    assert sample("--from-png", tmp_path / "00000.png", "--out", tmp_path) == 2
    assert "holds 00000.png itself" in caplog_ldm.text
    assert (tmp_path / "00000.png").read_bytes() == before


@pytest.mark.parametrize("left", [0, 500])
def test_a_picture_that_was_cut_is_drawn_again(runs, tmp_path, left):
    words = [runs["plain"], "--n", 3, "--steps", 2, "--batch-size", 1]
    assert sample(*words, "--out", tmp_path) == 0
    whole = all_pixels(tmp_path)
    path = tmp_path / "00001.png"
    path.write_bytes(path.read_bytes()[:left])
    assert sample(*words, "--out", tmp_path) == 0
    assert all_pixels(tmp_path) == whole


def test_a_damaged_note_of_a_job_is_named(runs, tmp_path, caplog_ldm):
    words = [runs["plain"], "--n", 1, "--steps", 2, "--out", tmp_path]
    assert sample(*words) == 0
    (tmp_path / "job.json").write_text("{")
    assert sample(*words) == 2
    assert "job.json: is damaged" in caplog_ldm.text


def test_what_is_no_number_is_not_written_as_a_picture(runs, tmp_path, caplog_ldm):
    words = ["--classes", 3, "--scale", 1e38, "--steps", 3, "--seed", 7, "--n", 1]
    assert sample(runs["class"], *words, "--out", tmp_path) == 2
    assert "the image of seed 7 is not finite" in caplog_ldm.text
    assert not list(tmp_path.glob("*.png"))


def test_the_text_of_a_picture_says_numbers_that_are_0(runs, tmp_path):
    assert sample(runs["class"], "--classes", 0, "--n", 1, "--steps", 2, "--out", tmp_path) == 0
    with Image.open(tmp_path / "00000.png") as image:
        assert (image.text["seed"], image.text["class_label"]) == ("0", "0")
