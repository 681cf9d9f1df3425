"""scripts/inpaint.py on a model that was trained to fill holes."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.cli.exits import exit_code
from ldm.cli.sampling.inpainting import Inpaint
from ldm.data.decoding import read_image
from ldm.data.masks import masked
from ldm.tensor import to_image_tensor, to_uint8
from tests.cli.jobs import job
from tests.cli.runs import pixels, script, trained, unconditional
from tests.cli.turned import turned
from tests.models.test_diffusion_inpainting import filler

STEPS = ["--steps", 4, "--device", "cpu"]


def by_hole():
    """A latent diffusion model that is trained to fill holes."""
    config = unconditional()
    params = config["model"]["params"]
    params["cond_stage_key"] = "masked_image"
    params["cond_stage_config"] = "__is_first_stage__"
    params["unet_config"]["params"]["in_channels"] = 9
    data = config["data"]["params"]
    for split in ("train", "validation"):
        data[split] = {"target": "ldm.data.masks.Masked", "params": {"source": data[split]}}
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs"), hole=by_hole())


def inpaint(*words):
    return exit_code(script("inpaint"), [*map(str, words), *map(str, STEPS)])


def pair(place, name="a", height=16, width=16, seed=0, bottom=8):
    """An image and a mask whose upper rows are white; its pixels, and which are hidden."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[:bottom] = 255
    Image.fromarray(image).save(place / f"{name}.png")
    Image.fromarray(mask).save(place / f"{name}_mask.png")
    return image, mask > 0


def test_the_model_is_given_what_its_data_would_give(tmp_path):
    model, _ = filler()
    image, hidden = pair(tmp_path, height=8, width=12, bottom=4)
    words = [tmp_path / "a.png", "--steps", 4]
    made = job(model, tmp_path / "out", *words, task=Inpaint())
    given = made.task.given(model, made.args, made.items)
    shown = to_image_tensor(torch.from_numpy(masked(image, hidden))[None])
    assert torch.equal(given.batch["masked_image"], shown.permute(0, 2, 3, 1))
    as_data = torch.from_numpy(hidden[None, ..., None].astype(np.uint8) * 255)
    assert torch.equal(given.batch["mask"], to_image_tensor(as_data).permute(0, 2, 3, 1))
    assert given.options == {"size": (4, 6)}


@pytest.mark.slow
def test_known_pixels_stay_and_hidden_ones_are_the_models(runs, tmp_path):
    image, hidden = pair(tmp_path, height=16, width=24)
    words = [runs["hole"], tmp_path / "a.png", "--n", 2]
    assert inpaint(*words, "--out", tmp_path / "out") == 0
    first, second = (pixels(tmp_path / f"out/0000{index}.png") for index in range(2))
    for drawn in (first, second):
        assert drawn.shape == image.shape
        assert np.array_equal(drawn[~hidden], image[~hidden])
        assert (drawn[hidden] != image[hidden]).mean() > 0.5
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("orientation", [1, 5, 6, 7, 8])
def test_the_mask_of_a_turned_photograph_lies_on_it_upright(tmp_path, orientation, caplog_ldm):
    model, _ = filler()
    image = read_image(turned(tmp_path / "a.png", orientation))
    height, width = image.shape[:2]
    hidden = np.zeros((height, width), bool)
    hidden[: height // 4, : width // 2] = True
    Image.fromarray(hidden).save(tmp_path / "a_mask.png")
    made = job(model, tmp_path / "out", tmp_path / "a.png", "--steps", 2, task=Inpaint())
    assert made.items[0]["size"] == [height, width]
    given = made.task.given(model, made.args, made.items)
    assert np.array_equal(given.batch["mask"][0, ..., 0].numpy() == 1, hidden)
    (drawn,) = made.draw([0])
    assert np.array_equal(drawn[~hidden], image[~hidden])
    assert "resized" not in caplog_ldm.text


def test_nothing_holds_known_latents_beside_what_the_model_is_told(tmp_path):
    model, _ = filler()
    image, hidden = pair(tmp_path, height=8, width=8, bottom=4)
    words = [tmp_path / "a.png", "--steps", 4]
    made = job(model, tmp_path / "out", *words, task=Inpaint(), seed=3)
    (drawn,) = made.draw([0])
    told = {
        "masked_image": torch.from_numpy(masked(image, hidden))[None],
        "mask": torch.from_numpy(hidden.astype(np.uint8) * 255)[None, ..., None],
    }
    free = to_uint8(model.sample([3], told, steps=4))[0].numpy()
    assert np.array_equal(drawn, np.where(hidden[..., None], free, image))


@pytest.mark.slow
def test_what_is_drawn_depends_on_what_is_known_and_on_the_mask(runs, tmp_path):
    drawn = []
    for name, options in (("a", {}), ("b", {"seed": 1}), ("c", {"bottom": 12})):
        pair(tmp_path, name, **options)
        words = [runs["hole"], tmp_path / f"{name}.png", "--out", tmp_path / name]
        assert inpaint(*words) == 0
        drawn.append(pixels(tmp_path / name / "00000.png")[:8])
    assert not np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


@pytest.mark.slow
def test_a_picture_is_drawn_again_from_its_record(runs, tmp_path, caplog_ldm):
    pair(tmp_path)
    words = [runs["hole"], tmp_path / "a.png", "--n", 3, "--seed", 9, "--out", tmp_path / "out"]
    assert inpaint(*words) == 0
    again = ["--from-png", str(tmp_path / "out/00001.png"), "--out", str(tmp_path / "b")]
    assert exit_code(script("inpaint"), again) == 0
    assert "00001.png: the same to the last bit" in caplog_ldm.text
    pair(tmp_path, bottom=5)
    assert exit_code(script("inpaint"), [*again[:3], str(tmp_path / "c")]) == 2
    assert "a_mask.png: is not the file any more" in caplog_ldm.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"), [("sample", []), ("img2img", ["a.png"]), ("semantic", ["a.png"])]
)
def test_other_scripts_name_the_right_one(runs, tmp_path, monkeypatch, caplog_ldm, name, words):
    monkeypatch.chdir(tmp_path)
    pair(tmp_path)
    assert exit_code(script(name), [str(runs["hole"]), *words, "--out", "out"]) == 2
    assert "masked_image" in caplog_ldm.text
    assert "draw it with scripts/inpaint.py" in caplog_ldm.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a.png", "--class", 3], "--class 3: this model was trained without classes"),
        (["alone.png"], "alone.png: there is no alone_mask.png beside it"),
        (["a.png", "--size", 10, 16], "--size 10 16: expected multiples of 4 pixels"),
    ],
)
def test_what_cannot_be_drawn_is_explained(
    runs, tmp_path, monkeypatch, caplog_ldm, words, expected
):
    monkeypatch.chdir(tmp_path)
    pair(tmp_path)
    pair(tmp_path, "alone")
    (tmp_path / "alone_mask.png").unlink()
    assert inpaint(runs["hole"], *words, "--out", "out") == 2
    assert expected in caplog_ldm.text
    assert not (tmp_path / "out").exists()
