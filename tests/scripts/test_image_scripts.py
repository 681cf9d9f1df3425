"""The scripts that are given images."""

import numpy as np
import pytest
from PIL import Image

from ldm.cli.exits import exit_code
from tests.cli.runs import pixels, script, second_stage, trained, unconditional

pytestmark = pytest.mark.slow

STEPS = ["--steps", 4, "--device", "cpu"]


def run_script(name, *words):
    return exit_code(script(name), [*map(str, words), *map(str, STEPS)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    configs = {"plain": unconditional(), "class": second_stage()}
    return trained(tmp_path_factory.mktemp("runs"), **configs)


def save(path, height, width, seed=0, levels=(0, 256)):
    pixels = np.random.default_rng(seed).integers(*levels, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def mask(path, height, width, top=0, bottom=8):
    pixels = np.zeros((height, width), np.uint8)
    pixels[top:bottom] = 255
    Image.fromarray(pixels).save(path)
    return pixels > 127


def test_an_image_of_any_size_is_drawn_anew_at_its_own_size(runs, tmp_path, caplog_ldm):
    (tmp_path / "in").mkdir()
    save(tmp_path / "in/a.png", 16, 16)
    save(tmp_path / "in/b.png", 17, 30)
    assert run_script("img2img", runs["plain"], tmp_path / "in", "--out", tmp_path / "out") == 0
    assert "b.png: 17 x 30 pixels, drawn as 16 x 28" in caplog_ldm.text
    assert pixels(tmp_path / "out/00000.png").shape == (16, 16, 3)
    assert pixels(tmp_path / "out/00001.png").shape == (16, 28, 3)


def test_less_strength_keeps_more_of_an_image(runs, tmp_path):
    given = save(tmp_path / "a.png", 16, 16)
    words = [runs["class"], tmp_path / "a.png", "--class", 3, "--skip-grid"]
    apart = []
    for strength in (0.25, 1):
        out = tmp_path / str(strength)
        assert run_script("img2img", *words, "--strength", strength, "--out", out) == 0
        again = pixels(out / "00000.png")
        apart.append(again)
    assert not np.array_equal(*apart)
    assert given.shape == apart[0].shape


def test_known_pixels_stay_to_the_last_bit_and_hidden_ones_are_drawn(runs, tmp_path):
    given = save(tmp_path / "a.png", 16, 24)
    hidden = mask(tmp_path / "a_mask.png", 16, 24)
    words = [runs["plain"], tmp_path / "a.png", "--n", 2]
    assert run_script("inpaint", *words, "--out", tmp_path / "out") == 0
    first, second = (pixels(tmp_path / f"out/0000{index}.png") for index in range(2))
    for drawn in (first, second):
        assert np.array_equal(drawn[~hidden], given[~hidden])
        assert (drawn[hidden] != given[hidden]).mean() > 0.5
    assert not np.array_equal(first, second)


def test_what_is_hidden_depends_on_what_is_known(runs, tmp_path):
    mask(tmp_path / "mask.png", 16, 16)
    drawn = []
    for name, levels in (("dark", (0, 40)), ("light", (215, 256))):
        save(tmp_path / f"{name}.png", 16, 16, levels=levels)
        words = [runs["plain"], tmp_path / f"{name}.png", "--mask", tmp_path / "mask.png"]
        assert run_script("inpaint", *words, "--out", tmp_path / name) == 0
        drawn.append(pixels(tmp_path / name / "00000.png")[:8])
    assert not np.array_equal(*drawn)


def test_a_mask_of_another_size_is_resized_and_told(runs, tmp_path, caplog_ldm):
    given = save(tmp_path / "a.png", 16, 16)
    mask(tmp_path / "mask.png", 32, 32, bottom=16)
    words = [runs["plain"], tmp_path / "a.png", "--mask", tmp_path / "mask.png"]
    assert run_script("inpaint", *words, "--out", tmp_path / "out") == 0
    assert "mask.png: resized from 32 x 32 to its image's 16 x 16" in caplog_ldm.text
    assert np.array_equal(pixels(tmp_path / "out/00000.png")[8:], given[8:])


def test_a_mask_of_other_proportions_is_refused(runs, tmp_path, caplog_ldm):
    save(tmp_path / "a.png", 16, 16)
    mask(tmp_path / "mask.png", 20, 32, bottom=10)
    words = [runs["plain"], tmp_path / "a.png", "--mask", tmp_path / "mask.png"]
    assert run_script("inpaint", *words, "--out", tmp_path / "out") == 2
    assert "mask.png: has 20 x 32 pixels (height x width), its image" in caplog_ldm.text
    assert "has 16 x 16; expected the same proportions" in caplog_ldm.text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "extra"), [("img2img", []), ("inpaint", ["--n", 2])])
def test_a_picture_is_drawn_again_from_its_record(runs, tmp_path, caplog_ldm, name, extra):
    save(tmp_path / "a.png", 16, 16)
    mask(tmp_path / "a_mask.png", 16, 16)
    words = [runs["class"], tmp_path / "a.png", "--class", 3, "--seed", 9, *extra]
    assert run_script(name, *words, "--scale", 2, "--out", tmp_path / "out") == 0
    png = tmp_path / "out" / "00000.png"
    assert exit_code(script(name), ["--from-png", str(png), "--out", str(tmp_path / "b")]) == 0
    assert "the same to the last bit" in caplog_ldm.text
    save(tmp_path / "a.png", 16, 16, seed=1)
    assert exit_code(script(name), ["--from-png", str(png), "--out", str(tmp_path / "c")]) == 2
    assert "a.png: is not the file any more" in caplog_ldm.text


def test_a_mask_that_has_changed_is_told(runs, tmp_path, caplog_ldm):
    save(tmp_path / "a.png", 16, 16)
    mask(tmp_path / "a_mask.png", 16, 16)
    out = tmp_path / "out"
    assert run_script("inpaint", runs["plain"], tmp_path / "a.png", "--out", out) == 0
    mask(tmp_path / "a_mask.png", 16, 16, bottom=4)
    words = ["--from-png", str(out / "00000.png"), "--out", str(tmp_path / "b")]
    assert exit_code(script("inpaint"), words) == 2
    assert "a_mask.png: is not the file any more" in caplog_ldm.text


def test_what_a_mask_hides_leaves_no_trace(runs, tmp_path):
    drawn = []
    for name, level in (("a", 0), ("b", 255)):
        save(tmp_path / f"{name}.png", 16, 16)
        picture = pixels(tmp_path / f"{name}.png").copy()
        picture[:8] = level
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
        mask(tmp_path / f"{name}_mask.png", 16, 16)
        out = tmp_path / f"of_{name}"
        words = [runs["plain"], tmp_path / f"{name}.png", "--steps", 4, "--out", out]
        assert run_script("inpaint", *words) == 0
        drawn.append(pixels(out / "00000.png"))
    assert (drawn[0] == drawn[1]).all()


@pytest.mark.parametrize("kind", ["row", "gif"])
def test_previews_show_how_an_image_came_about(runs, tmp_path, kind):
    save(tmp_path / "a.png", 16, 16)
    words = [runs["plain"], tmp_path / "a.png", "--strength", 1, "--preview", kind]
    assert run_script("img2img", *words, "--out", tmp_path / "out") == 0
    if kind == "row":
        row = pixels(tmp_path / "out/00000_row.png")
        assert row.shape == (16, 64, 3)
        assert np.array_equal(row[:, 48:], pixels(tmp_path / "out/00000.png"))
    else:
        with Image.open(tmp_path / "out/00000.gif") as moving:
            assert moving.size == (16, 16)
            assert 2 <= moving.n_frames <= 4  # a format that joins frames that are alike


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("img2img", [], "no images"),
        ("img2img", ["none.png"], "none.png: there is no such image or directory"),
        ("img2img", ["broken.png"], "broken.png: cannot be read"),
        ("img2img", ["small.png"], "small.png: 2 x 2 pixels, expected 4 x 4 or more"),
        ("img2img", ["a.png", "--strength", 0], "--strength 0.0: expected more than 0"),
        ("img2img", ["a.png", "--strength", "nan"], "--strength nan"),
        ("img2img", ["a.png", "--prompt", "a"], "without captions"),
        ("img2img", ["a.png"], "--class is needed"),
        ("inpaint", ["a.png", "--class", 3], "there is no a_mask.png beside it"),
        ("inpaint", ["a.png", "--class", 3, "--mask", "none.png"], "--mask none.png: no such file"),
        ("inpaint", ["a.png", "--class", 3, "--mask", "black.png"], "black.png: hides nothing"),
        ("inpaint", ["a.png", "--class", 3, "--mask", "broken.png"], "broken.png: cannot be read"),
    ],
)
def test_what_cannot_be_drawn_is_explained(
    runs, tmp_path, monkeypatch, caplog_ldm, name, words, expected
):
    monkeypatch.chdir(tmp_path)
    save("a.png", 16, 16)
    save("small.png", 2, 2)
    mask("black.png", 16, 16, bottom=0)
    (tmp_path / "broken.png").write_text("no image")
    assert run_script(name, runs["class"], *words, "--out", "out") == 2
    assert expected in caplog_ldm.text
    assert not (tmp_path / "out").exists()
