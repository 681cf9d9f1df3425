"""Flags of samplers and guidance, as far as a model that is in memory can draw with them."""

import argparse

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.cli.sampling.options import require_condition
from ldm.config import ConfigError
from ldm.guidance.classifier_free import ClassifierFree
from ldm.guidance.correction import Thresholded
from ldm.guidance.interval import Interval
from ldm.guidance.projected import Projected
from ldm.guidance.rescaled import Rescaled
from ldm.guidance.tiled import Tiled
from ldm.samplers.names import GRIDS, SAMPLERS, sampler_named
from ldm.tensor import to_uint8
from tests.cli.jobs import built, draw, job
from tests.cli.runs import pixels, second_stage, unconditional


@pytest.fixture(scope="module")
def clipped():
    """A model by class whose estimates of x0 are clipped, as those of pixels are."""
    return built(second_stage(), clip_denoised=True)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_drawn_with_by_its_short_name(plain, tmp_path, name):
    draw(plain, tmp_path, "--steps", 4, "--n", 1, "--sampler", name, seed=7)
    want = to_uint8(plain.sample([7], steps=4, sampler=sampler_named(name)))[0]
    assert np.array_equal(pixels(tmp_path / "00000.png"), want)
    with Image.open(tmp_path / "00000.png") as image:
        assert image.text["sampler"] == name
        assert image.text["solver"] == repr(sampler_named(name))


@pytest.mark.parametrize("grid", GRIDS)
def test_times_are_those_of_a_grid_by_its_short_name(plain, tmp_path, grid):
    made = job(plain, tmp_path, "--steps", 4, "--n", 1, "--times", grid)
    assert type(made.options["sampler"]) is type(plain.sampler)
    assert made.options["sampler"].grid == GRIDS[grid]()


@pytest.mark.parametrize(
    ("words", "sampler"),
    [
        (["--plms"], "plms"),
        (["--dpm_solver"], "dpmpp-2m"),
    ],
)
def test_published_flags_name_samplers(plain, tmp_path, words, sampler):
    made = job(plain, tmp_path, "--steps", 4, "--n", 1, *words)
    assert made.options["sampler"] == sampler_named(sampler)


def guided(model, out, *words):
    """The denoiser that flags make, around one that is recognised."""
    made = job(model, out, "--steps", 4, "--n", 1, "--classes", 3, *words)
    guide = made.options["guide"]
    null = model.conditioner.null({"class_label": torch.tensor([3])})
    return None if guide is None else guide("net", null)


def test_without_flags_guidance_is_classifier_free(by_class, tmp_path):
    assert guided(by_class, tmp_path, "--scale", 3) is None  # that of `sample`


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        (["--interval", 0.1, 0.8], [Interval, ClassifierFree]),
        (["--rescale", 0.7], [Rescaled, ClassifierFree]),
        (["--project", 5, "--rescale", 0.7], [Rescaled, Projected, ClassifierFree]),
        (["--threshold", 0.99, "--tile", 16, 16], [Thresholded, ClassifierFree, Tiled]),
    ],
)
def test_flags_of_guidance_wrap_in_the_documented_order(clipped, tmp_path, words, kinds):
    denoiser = guided(clipped, tmp_path, "--scale", 3, *words)
    found = []
    while denoiser != "net":
        found.append(type(denoiser))
        inner = {Interval: "inside", Rescaled: "guidance", Projected: "guidance"}
        denoiser = getattr(denoiser, inner.get(type(denoiser), "denoiser"))
    assert found == kinds


def test_flags_of_guidance_change_the_image(clipped, tmp_path):
    images = set()
    flags = ([], ["--interval", 0, 0.5], ["--rescale", 1], ["--project", 0.1], ["--threshold", 0.5])
    for index, words in enumerate(flags):
        out = tmp_path / str(index)
        words = ["--classes", 3, "--n", 1, "--steps", 4, "--scale", 30, *words]
        draw(clipped, out, *words)
        images.add(pixels(out / "00000.png").tobytes())
    assert len(images) == len(flags)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--sampler", "dpmpp2m"], "--sampler: 'dpmpp2m'; .* did you mean 'dpmpp-2m'"),
        (["--times", "karas"], "--times: 'karas'; .* did you mean 'karras'"),
        (["--sampler", "unipc", "--eta", 0.5], "--eta: 0.5; unipc has none"),
        (["--steps", 0], "--steps 0: expected 1 or more"),
        (["--steps", 1001], "--steps 1001: expected 1 to 1000"),
        (["--scale", "nan"], "--scale nan: expected a number"),
        (["--scale", "inf"], "--scale inf: expected a number"),
        (["--rescale", 0.5], "--rescale: there is no guidance to change"),
        (["--scale", 2, "--rescale", 1.5], "--rescale: phi is 1.5, expected 0 to 1"),
        (["--scale", 2, "--interval", 0.5, 0.1], "--interval: expected 0 <= low <= high"),
        (["--scale", 2, "--project", 0], "--project: threshold is 0.0"),
        (["--threshold", 0.9], "--threshold: is for pixels"),
        (["--eta", "nan"], "--eta nan: expected a number"),
        (["--scale", 2, "--interval", 0, "inf"], "--interval 0.0 inf: expected a number"),
        (["--tile", 15, 16], "--tile 15 16: expected multiples of 4"),
        (["--size", 16, 18], "--size 16 18: expected multiples of 4"),
        (["--size", 0, 0], "--size 0 0: expected positive multiples of 4 pixels"),
        (["--size", -4, 8], "--size -4 8: expected positive multiples of 4 pixels"),
    ],
)
def test_a_flag_out_of_range_is_named(by_class, tmp_path, words, expected):
    with pytest.raises(ConfigError, match=expected):
        job(by_class, tmp_path, "--classes", 3, *words)


def joined(drop_rate):
    """A model to which a low-resolution image is joined, and nothing else is told."""
    config = unconditional()
    config["model"]["params"] |= {
        "cond_stage_key": "LR_image",
        "cond_stage_config": {
            "target": "ldm.conditioning.spatial.SpatialRescaler",
            "params": {"n_stages": 0, "in_channels": 3, "drop_rate": drop_rate},
        },
    }
    config["model"]["params"]["unet_config"]["params"]["in_channels"] = 7
    return built(config)


def scaled(model, scale):
    require_condition(argparse.Namespace(scale=scale), model)


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_there_is_no_guidance_where_nothing_can_be_left_out(scale):
    model = joined(0.0)
    batch = {"LR_image": torch.rand(2, 8, 8, 3)}
    told, null = model.conditioner(batch), model.conditioner.null(batch)
    assert torch.equal(told.concat, null.concat)  # so that every scale draws the same
    expected = f"--scale {scale:g}: this model is never without LR_image"
    with pytest.raises(ConfigError, match=expected):
        scaled(model, scale)
    scaled(model, 1.0)


def test_what_is_left_out_now_and_then_can_be_followed(caplog_ldm):
    scaled(joined(0.1), 3.0)
    assert caplog_ldm.messages == []


@pytest.mark.parametrize(("drop_rate", "count"), [(0.0, 1), (0.1, 0)])
def test_a_model_that_was_never_without_its_condition_is_told_of(caplog_ldm, drop_rate, count):
    config = second_stage()
    config["model"]["params"]["cond_stage_config"]["params"]["drop_rate"] = drop_rate
    model = built(config)
    scaled(model, 1.0)
    assert caplog_ldm.messages == []
    scaled(model, 3.0)
    found = [line for line in caplog_ldm.messages if "no encoder of this model has" in line]
    assert len(found) == count


def test_a_share_to_threshold_at_is_a_share(clipped, tmp_path):
    with pytest.raises(ConfigError, match="--threshold: percentile is 2"):
        job(clipped, tmp_path, "--classes", 3, "--threshold", 2)
