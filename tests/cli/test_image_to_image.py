"""Images that img2img.py inverts, as far as a model in memory shows it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.cli.sampling.image_to_image import ImageToImage
from ldm.config import ConfigError, instantiate_model
from ldm.data.decoding import read_image
from ldm.guidance.tiled import Tiled
from ldm.models.diffusion.sampling import Inverted
from tests.cli.jobs import draw, job
from tests.cli.letters import captioned
from tests.cli.runs import unconditional
from tests.cli.turned import turned
from tests.reference import fill


@pytest.fixture(scope="module")
def model():
    return fill(captioned())


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    levels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(levels).save(path)
    return path


def start_of(made):
    return made.task.given(made.model, made.args, made.items).options["start"]


def inverting(model, picture, *words):
    words = [picture, "--invert", "--steps", 3, *words]
    return job(model, picture.parent / "out", *words, task=ImageToImage())


def test_what_an_image_shows_is_what_is_drawn_unless_it_is_said(model, picture):
    made = inverting(model, picture, "--prompt", "a cat")
    assert isinstance(start_of(made), Inverted)
    assert start_of(made).batch is None
    told = inverting(model, picture, "--prompt", "a cat", "--source-prompt", "a dog there")
    assert start_of(told).batch == {"caption": ["a dog there"]}
    assert told.items[0]["caption"] == "a cat"
    assert not np.array_equal(told.draw(range(1)), made.draw(range(1)))


def test_what_images_show_is_encoded_once_in_a_job(picture, monkeypatch):
    model, encoded = fill(captioned()), []
    (part,) = model.conditioner.parts
    encode = part.embedder.encode
    monkeypatch.setattr(
        part.embedder, "encode", lambda texts: encoded.append(texts) or encode(texts)
    )
    words = ["--prompt", "a cat", "--source-prompt", "a dog", "--n", 4, "--batch-size", 2]
    made = inverting(model, picture, *words)
    for batch in made.batches():
        made.draw(batch)
    assert sorted(encoded) == [["a cat"], ["a dog"]]


def test_a_prompt_of_another_length_edits_the_image(model, picture):
    words = ["--strength", 0, "--source-prompt", "a dog"]
    same, other = (
        inverting(model, picture, *words, "--prompt", text).draw(range(1))
        for text in ("a cat", "a hippopotamus")
    )
    assert not np.array_equal(same, other)


def test_windows_are_inverted_in_windows(model, picture):
    made = inverting(model, picture, "--prompt", "a", "--tile", 16, 16)
    assert isinstance(start_of(made).guide(model.denoiser, None), Tiled)
    assert start_of(inverting(model, picture, "--prompt", "a")).guide is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_noise_replaced_is_plain_drawing_in_any_precision(picture, precision):
    block = unconditional()["model"]
    model = instantiate_model(block).eval()
    words = ["--steps", 3, "--precision", precision, "--n", 1]
    plain = job(model, picture.parent / "b", *words, "--size", 16, 24).draw(range(1))
    words = [picture, "--invert", "--strength", 1, *words]
    inverted = job(model, picture.parent / "a", *words, task=ImageToImage())
    assert np.array_equal(inverted.draw(range(1)), plain)


def test_a_step_to_pure_noise_is_refused(picture):
    block = unconditional()["model"]
    flow = {"schedule_config": {"target": "ldm.diffusion.schedule.RectifiedFlow"}}
    params = block["params"] | flow | {"parameterization": "v"}
    params = {key: params[key] for key in params if not key.startswith("linear_")}
    model = instantiate_model({**block, "params": params}).eval()
    words = [picture, "--invert", "--steps", 1]
    with pytest.raises(ConfigError, match="--steps 1: expected 2 or more, to invert"):
        job(model, picture.parent / "out", *words, task=ImageToImage())


def test_states_of_an_inversion_are_not_rounded_with_the_products(model, picture):
    seen = []

    def guide(denoiser, null):
        def watching(x_t, t, cond):
            seen.append(x_t.dtype)
            return denoiser(x_t, t, cond)

        return watching

    images = torch.zeros(1, 3, 16, 16)
    start = Inverted(images, 0.0, guide=guide)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.sample([0], {"caption": ["a"]}, steps=4, start=start)
    assert seen == [torch.float32] * 4


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
def test_a_photograph_is_drawn_as_large_as_it_is_upright(model, tmp_path, orientation):
    path = turned(tmp_path / "a.png", orientation)
    made = job(model, tmp_path / "out", path, "--steps", 2, "--prompt", "a", task=ImageToImage())
    upright = read_image(path)
    assert made.items[0]["size"] == list(upright.shape[:2])
    assert made.draw([0])[0].shape == upright.shape


def test_a_job_of_before_images_were_inverted_goes_on(model, picture, tmp_path):
    words = [picture, "--steps", 2, "--prompt", "a"]
    draw(model, tmp_path / "out", *words, task=ImageToImage())
    path = tmp_path / "out" / "job.json"
    told = json.loads(path.read_text())
    assert told.pop("invert") is None
    path.write_text(json.dumps(told))
    job(model, tmp_path / "out", *words, task=ImageToImage()).begin()
    with pytest.raises(ConfigError, match="were drawn with invert None, not True"):
        job(model, tmp_path / "out", *words, "--invert", task=ImageToImage()).begin()
