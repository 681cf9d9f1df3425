"""scripts/semantic.py on a model that was trained for two steps."""

import numpy as np
import pytest
from PIL import Image

from ldm.cli.exits import exit_code
from ldm.data.shapes import ShapesDataset
from tests.cli.runs import pixels, script, second_stage, trained, unconditional

pytestmark = pytest.mark.slow

STEPS = ["--steps", 4, "--device", "cpu"]


def by_map():
    """A latent diffusion model on maps of 25 labels."""
    config = unconditional()
    params = config["model"]["params"]
    params["cond_stage_key"] = "segmentation"
    params["cond_stage_trainable"] = True
    params["cond_stage_config"] = {
        "target": "ldm.modules.encoders.modules.SpatialRescaler",
        "params": {"n_stages": 1, "in_channels": 25, "out_channels": 3},
    }
    params["unet_config"]["params"]["in_channels"] = 7
    data = config["data"]["params"]
    for split in ("train", "validation"):
        target = "ldm.data.maps.SemanticMaps"
        data[split] = {"target": target, "params": {"source": data[split], "num_labels": 25}}
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    configs = {"map": by_map(), "class": second_stage()}
    return trained(tmp_path_factory.mktemp("runs"), **configs)


def semantic(*words):
    return exit_code(script("semantic"), [*map(str, words), *map(str, STEPS)])


def drawn_map(path, height=16, width=16, label=7):
    """A map with a thing of this label on the background, as a PNG with a palette."""
    labels = np.zeros((height, width), np.uint8)
    labels[height // 4 : height // 2, width // 4 :] = label
    image = Image.fromarray(labels)
    image.putpalette([200 - number // 3 % 100 for number in range(768)])
    image.save(path)
    return labels


def test_every_kind_of_file_of_one_map_is_drawn_alike(runs, tmp_path):
    labels = drawn_map(tmp_path / "a.png")
    Image.fromarray(labels).save(tmp_path / "grey.png")
    np.save(tmp_path / "array.npy", labels.astype(np.int32))
    images = []
    for name in ("a.png", "grey.png", "array.npy"):
        assert semantic(runs["map"], tmp_path / name, "--out", tmp_path / "out" / name) == 0
        images.append(pixels(tmp_path / "out" / name / "00000.png"))
    assert images[0].shape == (16, 16, 3)
    assert np.array_equal(images[0], images[1])
    assert np.array_equal(images[0], images[2])


def test_what_is_drawn_follows_the_map(runs, tmp_path):
    for name, label in (("a", 7), ("b", 20)):
        drawn_map(tmp_path / f"{name}.png", label=label)
        words = [runs["map"], tmp_path / f"{name}.png", "--n", 2, "--out", tmp_path / name]
        assert semantic(*words) == 0
    images = [pixels(tmp_path / name / f"0000{i}.png") for name in ("a", "b") for i in range(2)]
    assert not np.array_equal(images[0], images[2])
    assert not np.array_equal(images[0], images[1])


def test_an_image_depends_on_its_map_and_its_seed_alone(runs, tmp_path):
    labels = ShapesDataset(16, length=24)[3]["segmentation"]
    np.save(tmp_path / "a.npy", labels)
    Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "b.png")
    (tmp_path / "maps").mkdir()
    for name in ("a.npy", "b.png"):
        (tmp_path / name).rename(tmp_path / "maps" / name)
    words = [runs["map"], tmp_path / "maps", "--batch-size", 1, "--seed", 5]
    assert semantic(*words, "--out", tmp_path / "out") == 0
    words = [runs["map"], tmp_path / "maps/b.png", "--seed", 6, "--out", tmp_path / "alone"]
    assert semantic(*words) == 0
    second = pixels(tmp_path / "out/00001.png")
    assert np.array_equal(second, pixels(tmp_path / "alone/00000.png"))


def test_maps_of_any_size_are_drawn_at_their_own(runs, tmp_path, caplog_ldm):
    (tmp_path / "in").mkdir()
    drawn_map(tmp_path / "in/a.png", 16, 24)
    drawn_map(tmp_path / "in/b.png", 17, 30)
    assert semantic(runs["map"], tmp_path / "in", "--out", tmp_path / "out") == 0
    assert "b.png: 17 x 30 pixels, drawn as 16 x 28" in caplog_ldm.text
    assert pixels(tmp_path / "out/00000.png").shape == (16, 24, 3)
    assert pixels(tmp_path / "out/00001.png").shape == (16, 28, 3)
    out = tmp_path / "sized"
    assert semantic(runs["map"], tmp_path / "in", "--size", 8, 12, "--out", out) == 0
    assert pixels(out / "00001.png").shape == (8, 12, 3)


def test_a_size_that_the_map_already_has_changes_nothing(runs, tmp_path):
    drawn_map(tmp_path / "a.png")
    for name, extra in (("own", []), ("sized", ["--size", 16, 16])):
        assert semantic(runs["map"], tmp_path / "a.png", *extra, "--out", tmp_path / name) == 0
    first, second = (pixels(tmp_path / name / "00000.png") for name in ("own", "sized"))
    assert np.array_equal(first, second)


def test_void_is_no_label_and_bears_on_the_picture(runs, tmp_path):
    drawn_map(tmp_path / "a.png", label=255)
    drawn_map(tmp_path / "b.png", label=7)
    words = [tmp_path / "a.png", "--void", 255, "--out", tmp_path / "a"]
    assert semantic(runs["map"], *words) == 0
    assert semantic(runs["map"], tmp_path / "b.png", "--out", tmp_path / "b") == 0
    assert not np.array_equal(*(pixels(tmp_path / name / "00000.png") for name in "ab"))


def test_a_picture_is_drawn_again_from_its_record(runs, tmp_path, caplog_ldm):
    drawn_map(tmp_path / "a.png", label=255)
    words = [runs["map"], tmp_path / "a.png", "--n", 3, "--seed", 9, "--void", 255, "--npz"]
    assert semantic(*words, "--out", tmp_path / "out") == 0
    assert np.load(tmp_path / "out/images.npz")["arr_0"].shape == (3, 16, 16, 3)
    again = ["--from-png", str(tmp_path / "out/00002.png"), "--out", str(tmp_path / "b")]
    assert exit_code(script("semantic"), again) == 0
    assert "00002.png: the same to the last bit" in caplog_ldm.text
    drawn_map(tmp_path / "a.png", label=3)
    assert exit_code(script("semantic"), [*again[:3], str(tmp_path / "c")]) == 2
    assert "a.png: is not the file any more" in caplog_ldm.text


def test_a_job_of_maps_goes_on_where_it_stopped(runs, tmp_path):
    (tmp_path / "in").mkdir()
    for name in "abc":
        drawn_map(tmp_path / f"in/{name}.png", label=ord(name) % 20)
    words = [runs["map"], tmp_path / "in", "--batch-size", 2, "--out", tmp_path / "out"]
    assert semantic(*words) == 0
    before = [pixels(tmp_path / f"out/0000{index}.png") for index in range(3)]
    (tmp_path / "out/00001.png").unlink()
    assert semantic(*words) == 0
    for index, image in enumerate(before):
        assert np.array_equal(image, pixels(tmp_path / f"out/0000{index}.png"))


@pytest.mark.parametrize(
    ("run", "words", "expected"),
    [
        ("map", [], "no maps: name files or directories after RUN"),
        ("map", ["none.png"], "none.png: there is no such image or directory"),
        ("map", ["broken.png"], "broken.png: cannot be read as a map: not an image"),
        ("map", ["rgb.png"], "rgb.png: cannot be read as a map: is an image of mode RGB"),
        ("map", ["float.npy"], "float.npy: cannot be read as a map: holds float64"),
        ("map", ["small.png"], "small.png: 2 x 2 pixels, expected 4 x 4 or more"),
        ("map", ["far.png"], "far.png: has the label 25, expected 0 to 24"),
        ("map", ["a.png", "--void", "-1"], "--void -1: expected 0 or more"),
        ("map", ["a.png", "--size", 10, 16], "--size 10 16: expected multiples of 4 pixels"),
        ("map", ["a.png", "--class", 3], "--class 3: this model was trained without classes"),
        ("map", ["a.png", "--prompt", "a"], "--prompt 'a': this model was trained without"),
        ("class", ["a.png"], "class_label (ClassEmbedder); draw it with scripts/sample.py"),
    ],
)
def test_what_cannot_be_drawn_is_explained(
    runs, tmp_path, monkeypatch, caplog_ldm, run, words, expected
):
    monkeypatch.chdir(tmp_path)
    drawn_map("a.png")
    drawn_map("small.png", 2, 2)
    drawn_map("far.png", label=25)
    Image.new("RGB", (16, 16)).save("rgb.png")
    np.save("float.npy", np.zeros((16, 16)))
    (tmp_path / "broken.png").write_text("no image")
    assert semantic(runs[run], *words, "--out", "out") == 2
    assert expected in caplog_ldm.text
    assert not (tmp_path / "out").exists()


def test_another_script_names_the_right_one(runs, tmp_path, caplog_ldm):
    words = [str(runs["map"]), "--n", "1", "--out", str(tmp_path / "out")]
    assert exit_code(script("sample"), words) == 2
    assert "draw it with scripts/semantic.py" in caplog_ldm.text
