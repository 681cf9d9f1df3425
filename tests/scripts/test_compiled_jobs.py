"""Jobs of compiled networks: pictures that are drawn again as they were drawn."""

import json

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.cli.exits import exit_code
from ldm.cli.sampling.clip import CLIP_FLAGS
from tests.cli.runs import script, second_stage, trained

pytestmark = pytest.mark.slow


def sample(*words):
    return exit_code(script("sample"), [*map(str, words), "--device", "cpu"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory of a model of classes."""
    return trained(tmp_path_factory.mktemp("runs"), small=second_stage())["small"]


def test_a_compiled_picture_is_drawn_again_compiled(run, tmp_path, counted, caplog_ldm):
    words = ["--compile", "--precision", "bf16", "--classes", 3, "--n", 3, "--scale", 2]
    how = ["--steps", 3, "--batch-size", 2]
    assert sample(run, *words, *how, "--out", tmp_path / "a") == 0
    assert counted.frame_count == 1
    for name in ("00001.png", "00002.png"):  # of a full batch, and of one that was filled up
        torch.compiler.reset()
        counted.frame_count = 0
        assert sample("--from-png", tmp_path / "a" / name, "--out", tmp_path / "b") == 0
        assert f"{name}: the same to the last bit" in caplog_ldm.text
        assert counted.frame_count == 1


def test_a_picture_of_a_record_without_the_flag_is_not_compiled(run, tmp_path, counted, caplog_ldm):
    words = ["--classes", 3, "--n", 1, "--steps", 2, "--out", tmp_path / "a"]
    assert sample(run, *words) == 0
    with Image.open(tmp_path / "a" / "00000.png") as image:
        told = json.loads(image.text["ldm"])
        assert told["flags"].pop("compiled") is None
        info = PngInfo()
        info.add_itxt("ldm", json.dumps(told))
        image.save(tmp_path / "old.png", pnginfo=info)
    words = ["--from-png", tmp_path / "old.png", "--compile", "--out", tmp_path / "b"]
    assert sample(*words) == 0
    assert "old.png: the same to the last bit" in caplog_ldm.text
    assert counted.frame_count == 0


def test_a_job_of_before_there_were_flags_of_clip_goes_on(run, tmp_path):
    words = [run, "--classes", 3, "--n", 1, "--steps", 2, "--out", tmp_path]
    assert sample(*words) == 0
    path = tmp_path / "job.json"
    told = json.loads(path.read_text())
    gone = {key: told.pop(key) for key in [*told] if key.startswith("clip")}
    assert gone == dict.fromkeys(CLIP_FLAGS)
    path.write_text(json.dumps(told))
    (tmp_path / "00000.png").unlink()
    assert sample(*words) == 0
    assert (tmp_path / "00000.png").is_file()


def test_a_compiled_job_goes_on_only_compiled(run, tmp_path, counted, caplog_ldm):
    words = [run, "--classes", 3, "--n", 2, "--steps", 2, "--out", tmp_path]
    assert sample(*words) == 0
    assert sample(*words, "--compile") == 2
    assert "its images were drawn with compiled None, not True" in caplog_ldm.text


def test_graphs_are_refused_before_anything_is_written(run, tmp_path, caplog_ldm):
    words = [run, "--classes", 3, "--n", 1, "--compile", "graphs", "--out", tmp_path / "a"]
    assert sample(*words) == 2
    assert "--compile graphs: CUDA graphs need a CUDA device" in caplog_ldm.text
    assert not (tmp_path / "a").exists()
