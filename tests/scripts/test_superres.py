"""Small images, drawn larger by a model that was trained for it, or by one that is guided."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.cli.exits import exit_code
from ldm.cli.sampling.superres import factor_of
from ldm.cli.train import train
from ldm.config import ConfigError, instantiate_model
from ldm.data.shapes import ShapesDataset
from ldm.data.superres import low_resolution
from ldm.io.checkpoint import load_state
from tests.cli.runs import pixels, script, second_stage, trained, unconditional, write
from tests.models.first_stages import perceptual_network
from tests.reference_configs import published_config

pytestmark = pytest.mark.slow

STEPS = ["--steps", 4, "--device", "cpu"]
SHORT = ["--max_steps", "2", "--limit_val_batches", "1", "--val_check_interval", "2"]
RESCALER = "ldm.conditioning.spatial.SpatialRescaler"


def superres(*words):
    return exit_code(script("superres"), [str(word) for word in (*words, *STEPS)])


def enlarging(factor=2, stages=0):
    """A model with f = 2 that is given an image `factor` times smaller, at the latent's size."""
    config = unconditional()
    params = config["model"]["params"]
    params |= {"cond_stage_key": "LR_image", "conditioning_key": "concat"}
    rescaler = {"target": RESCALER, "params": {"n_stages": stages, "multiplier": 2}}
    params["cond_stage_config"] = rescaler if stages else {"target": "torch.nn.Identity"}
    params["unet_config"]["params"]["in_channels"] = 7
    data = config["data"]["params"]
    for split in ("train", "validation"):
        source = {"source": data[split], "factor": factor}
        data[split] = {"target": "ldm.data.superres.SuperResolution", "params": source}
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    configs = {"plain": unconditional(), "class": second_stage()}
    configs |= {"x2": enlarging(), "x4": enlarging(4, stages=1)}
    shipped = {
        name: train(
            ["-b", f"configs/tiny/{name}.yaml", "-t", "-l", str(place), "--gpus", "cpu", *SHORT]
        ).path
        for name in ("ldm-superres", "ddpm")
    }
    return trained(place, **configs) | shipped


@pytest.fixture(scope="module")
def lpips_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "lpips.pth"
    torch.save(perceptual_network().state_dict(), path)
    return path


def save(path, height, width, seed=0, channels=3):
    shape = (height, width, channels)[: 2 if channels == 1 else 3]
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(values).save(path)
    return values


def scene(path, factor=4):
    """A drawn scene made small, saved."""
    low = low_resolution(ShapesDataset(16, length=1)[0]["image"], factor)
    Image.fromarray(low).save(path)
    return low


def error(drawn, low, factor=4):
    """Root of the mean squared difference in levels at low resolution."""
    return np.sqrt((low_resolution(drawn, factor).astype(float) - low).__pow__(2).mean())


# models that were trained for it


def test_the_shipped_model_trains_shows_what_it_is_given_and_enlarges(runs, tmp_path):
    (shown,) = (runs["ldm-superres"] / "images/val").glob("conditioning_LR_image_*.png")
    example = ShapesDataset(32, split="validation", length=8)[0]["image"]
    enlarged = low_resolution(example, 2).repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(pixels(shown)[2:34, 2:34], enlarged)
    (tmp_path / "in").mkdir()
    save(tmp_path / "in/a.png", 16, 16)
    save(tmp_path / "in/b.png", 12, 20)
    assert superres(runs["ldm-superres"], tmp_path / "in", "--out", tmp_path / "out") == 0
    assert pixels(tmp_path / "out/00000.png").shape == (32, 32, 3)
    assert pixels(tmp_path / "out/00001.png").shape == (24, 40, 3)


@pytest.mark.parametrize(("name", "factor"), [("x2", 2), ("x4", 4)])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 7), (1, 3)])
def test_an_image_of_any_size_is_drawn_so_many_times_larger(
    runs, tmp_path, name, factor, height, width
):
    save(tmp_path / "a.png", height, width)
    assert superres(runs[name], tmp_path / "a.png", "--out", tmp_path / "out") == 0
    assert pixels(tmp_path / "out/00000.png").shape == (factor * height, factor * width, 3)


def test_an_image_that_does_not_fit_is_continued_by_its_edge(runs, tmp_path, caplog_ldm):
    image = save(tmp_path / "a.png", 5, 8)
    Image.fromarray(np.concatenate([image, image[-1:]])).save(tmp_path / "b.png")
    for name in "ab":
        out = tmp_path / name
        assert superres(runs["x2"], tmp_path / f"{name}.png", "--out", out) == 0
    assert (
        "a.png: 5 x 8 pixels, its edge is continued: drawn as 12 x 16, then cut to 10 x 16"
        in caplog_ldm.text
    )
    assert "b.png: 6 x 8" not in caplog_ldm.text
    drawn = {name: pixels(tmp_path / name / "00000.png") for name in "ab"}
    assert np.array_equal(drawn["a"], drawn["b"][:10])


def test_what_is_drawn_depends_on_the_small_image_and_the_seed(runs, tmp_path):
    for number, seed in enumerate((0, 1)):
        save(tmp_path / f"{number}.png", 8, 8, seed=seed)
    out = tmp_path / "out"
    assert superres(runs["x2"], tmp_path / "0.png", "--n", 2, "--out", out) == 0
    assert superres(runs["x2"], tmp_path / "1.png", "--out", tmp_path / "other") == 0
    first, second = (pixels(out / f"0000{index}.png") for index in range(2))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, pixels(tmp_path / "other/00000.png"))


def test_the_model_reads_an_image_as_in_training(runs, tmp_path):
    image = save(tmp_path / "a.png", 8, 8)
    assert superres(runs["x2"], tmp_path / "a.png", "--seed", 3, "--out", tmp_path / "out") == 0
    (checkpoint,) = (runs["x2"] / "checkpoints").glob("last.ckpt")
    model = instantiate_model(enlarging()["model"]).eval()
    model.load_state_dict(load_state(checkpoint))
    batch = {"LR_image": torch.from_numpy(image)[None]}
    drawn = model.sample([3], batch, steps=4)[0].permute(1, 2, 0)
    levels = ((drawn.clamp(-1, 1) + 1) * 127.5).numpy()
    assert np.abs(levels - pixels(tmp_path / "out/00000.png")).max() <= 0.51


def test_a_grey_image_becomes_one_of_colours(runs, tmp_path):
    grey = save(tmp_path / "grey.png", 8, 8, channels=1)
    Image.fromarray(np.stack([grey] * 3, axis=2)).save(tmp_path / "rgb.png")
    for name in ("grey", "rgb"):
        assert superres(runs["x2"], tmp_path / f"{name}.png", "--out", tmp_path / name) == 0
    drawn = [pixels(tmp_path / name / "00000.png") for name in ("grey", "rgb")]
    assert np.array_equal(*drawn)


def test_a_large_image_is_drawn_in_windows(runs, tmp_path):
    save(tmp_path / "a.png", 12, 8)
    drawn = {}
    for name, tile in (("none", []), ("whole", [24, 16]), ("parts", [16, 16])):
        words = ["--tile", *tile] if tile else []
        assert superres(runs["x2"], tmp_path / "a.png", *words, "--out", tmp_path / name) == 0
        drawn[name] = pixels(tmp_path / name / "00000.png").astype(int)
    assert np.abs(drawn["whole"] - drawn["none"]).max() <= 1, "one window is the image itself"
    assert not np.array_equal(drawn["parts"], drawn["none"])


@pytest.mark.parametrize(
    ("stages", "multiplier", "factor"), [(1, 2, 4), (2, 2, 8), (1, 0.5, 1), (1, 1.5, 3)]
)
def test_the_factor_is_the_first_stages_times_the_encoders(stages, multiplier, factor):
    config = enlarging(stages=stages)["model"]
    config["params"]["cond_stage_config"]["params"]["multiplier"] = multiplier
    assert factor_of(instantiate_model(config)) == factor


def test_the_published_model_enlarges_four_times():
    with torch.device("meta"):
        model = instantiate_model(published_config("ldm_bsr_sr")["model"])
    assert factor_of(model) == 4


def test_a_factor_that_is_no_whole_number_is_named():
    config = enlarging(stages=1)["model"]
    config["params"]["cond_stage_config"]["params"]["multiplier"] = 1.25
    with pytest.raises(ConfigError, match="draws 5/2 times as large as its LR_image"):
        factor_of(instantiate_model(config))


# models that are guided


def guided(run, image, out, *words):
    assert superres(run, image, "--guide", *words, "--skip-grid", "--out", out) == 0
    return pixels(out / "00000.png")


@pytest.mark.parametrize(
    ("name", "words"), [("plain", []), ("ddpm", []), ("class", ["--class", 3])]
)
def test_guidance_brings_an_image_nearer_to_the_small_one(runs, tmp_path, name, words):
    low = scene(tmp_path / "low.png")
    errors = []
    for scale in (0, 10, 100):
        out = tmp_path / str(scale)
        found = guided(runs[name], tmp_path / "low.png", out, "l2", "--guide-scale", scale, *words)
        assert found.shape == (16, 16, 3)
        errors.append(error(found, low))
    assert errors[2] < errors[1] < errors[0]


def test_a_guide_of_scale_zero_is_no_guide(runs, tmp_path):
    scene(tmp_path / "low.png")
    found = guided(runs["ddpm"], tmp_path / "low.png", tmp_path / "a", "l2", "--guide-scale", 0)
    words = [runs["ddpm"], "--n", 1, "--out", tmp_path / "b", *STEPS]
    assert exit_code(script("sample"), [str(word) for word in words]) == 0
    assert np.array_equal(found, pixels(tmp_path / "b/00000.png"))


def test_lpips_guides_as_well(runs, tmp_path, lpips_weights):
    low = scene(tmp_path / "low.png")
    target = np.asarray(Image.fromarray(low).resize((16, 16), Image.Resampling.BICUBIC))
    distances = []
    for scale in (0, 300):
        words = ["lpips", "--guide-scale", scale, "--lpips-weights", lpips_weights]
        found = guided(runs["ddpm"], tmp_path / "low.png", tmp_path / str(scale), *words)
        pair = [torch.tensor(each).permute(2, 0, 1)[None] / 127.5 - 1 for each in (target, found)]
        distances.append(float(perceptual_network()(*pair)))
    assert distances[1] < distances[0]


@pytest.mark.parametrize("guide", ["l2", "lpips"])
def test_guidance_goes_with_products_in_half_precision(runs, tmp_path, lpips_weights, guide):
    scene(tmp_path / "low.png")
    words = [guide, "--lpips-weights", lpips_weights] if guide == "lpips" else [guide]
    drawn = [
        guided(runs["plain"], tmp_path / "low.png", tmp_path / each, *words, "--precision", each)
        for each in ("fp32", "bf16")
    ]
    apart = np.abs(drawn[0].astype(int) - drawn[1]).mean()
    assert 0 < apart < 4


def test_the_factor_of_a_guide_is_a_flag(runs, tmp_path):
    save(tmp_path / "a.png", 5, 3)
    out = tmp_path / "out"
    assert guided(runs["plain"], tmp_path / "a.png", out, "l2", "--factor", 3).shape == (15, 9, 3)


# what all sampling scripts share


@pytest.mark.parametrize("kind", ["trained", "l2", "lpips"])
def test_a_picture_is_drawn_again_from_its_record(runs, tmp_path, caplog_ldm, lpips_weights, kind):
    for name in "ab":
        save(tmp_path / f"{name}.png", 5, 6)
    words = [tmp_path / "a.png", tmp_path / "b.png", "--seed", 9, "--out", tmp_path / "out"]
    if kind != "trained":
        words += ["--guide", kind, "--guide-scale", 20]
    if kind == "lpips":
        words += ["--lpips-weights", lpips_weights]
    assert superres(runs["x2" if kind == "trained" else "plain"], *words) == 0
    again = ["--from-png", str(tmp_path / "out/00000.png"), "--out"]
    assert exit_code(script("superres"), [*again, str(tmp_path / "b")]) == 0
    assert "the same to the last bit" in caplog_ldm.text
    save(tmp_path / "b.png", 5, 6, seed=1)
    assert exit_code(script("superres"), [*again, str(tmp_path / "c")]) == 2
    assert "b.png: is not the file any more" in caplog_ldm.text


def test_a_job_goes_on_where_it_stopped_and_is_refused_with_another_factor(
    runs, tmp_path, caplog_ldm
):
    for name in "abc":
        save(tmp_path / f"{name}.png", 6, 6)
    images = [tmp_path / f"{name}.png" for name in "abc"]
    words = [runs["plain"], *images, "--guide", "l2", "--batch-size", 2, "--out", tmp_path / "out"]
    assert superres(*words) == 0
    before = [pixels(tmp_path / f"out/0000{index}.png") for index in range(3)]
    (tmp_path / "out/00001.png").unlink()
    assert superres(*words) == 0
    for index in range(3):
        assert np.array_equal(pixels(tmp_path / f"out/0000{index}.png"), before[index])
    assert json.loads((tmp_path / "out/job.json").read_text())["factor"] == 4
    assert superres(*words, "--factor", 2) == 2
    assert "were drawn with items" in caplog_ldm.text


def test_changed_weights_of_lpips_are_noticed(runs, tmp_path, caplog_ldm, lpips_weights):
    own = tmp_path / "lpips.pth"
    own.write_bytes(lpips_weights.read_bytes())
    save(tmp_path / "a.png", 4, 4)
    words = ["lpips", "--lpips-weights", own]
    guided(runs["plain"], tmp_path / "a.png", tmp_path / "out", *words)
    state = torch.load(own, weights_only=True)
    torch.save({name: value * 2 for name, value in state.items()}, own)
    again = ["--from-png", str(tmp_path / "out/00000.png"), "--out", str(tmp_path / "b")]
    assert exit_code(script("superres"), again) == 2
    assert "lpips_sha256 was" in caplog_ldm.text


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("x2", [], "no images"),
        ("x2", ["none.png"], "none.png: there is no such image or directory"),
        ("x2", ["broken.png"], "broken.png: cannot be read: not an image"),
        ("x2", ["cut.png"], "cut.png: cannot be read"),
        ("x2", ["a.png", "--factor", 4], "--factor 4: this model enlarges 2 times"),
        ("x2", ["a.png", "--size", 32, 32], "--size: the size is that of each image"),
        ("x2", ["a.png", "--class", 3], "--class 3: this model was trained without classes"),
        ("x2", ["a.png", "--guide", "l2"], "--guide l2: is for models that were not trained"),
        ("x2", ["a.png", "--guide-scale", 2], "--guide-scale 2.0: is for models that were not"),
        ("plain", ["a.png"], "give the run of one that was, or guide this one, with --guide l2"),
        ("plain", ["a.png", "--guide", "l2", "--factor", 0], "--factor 0: expected 1 or more"),
        ("plain", ["a.png", "--guide", "l2", "--guide-scale", -1], "--guide-scale -1.0: expected"),
        ("plain", ["a.png", "--guide", "l2", "--guide-scale", "nan"], "--guide-scale nan"),
        ("plain", ["a.png", "--guide", "lpips"], "--lpips-weights is needed"),
        ("plain", ["a.png", "--guide", "lpips", "--lpips-weights", "no.pth"], "no.pth: no such"),
        ("plain", ["a.png", "--guide", "lpips", "--lpips-weights", "a.png"], "a.png: does not fit"),
        ("plain", ["a.png", "--guide", "l2", "--lpips-weights", "x"], "x: is for --guide lpips"),
        ("class", ["a.png", "--guide", "l2"], "--class is needed"),
    ],
)  # fmt: skip
def test_what_cannot_be_enlarged_is_explained(
    runs, tmp_path, monkeypatch, caplog_ldm, name, words, expected
):
    monkeypatch.chdir(tmp_path)
    save("a.png", 8, 8)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "broken.png").write_text("no image")
    assert superres(runs[name], *words, "--out", "out") == 2
    said = [each.getMessage() for each in caplog_ldm.records if each.levelno >= logging.ERROR]
    assert any(expected in each for each in said), said
    assert not (tmp_path / "out").exists()


def test_an_image_that_is_too_small_for_lpips_is_named(runs, tmp_path, caplog_ldm, lpips_weights):
    save(tmp_path / "a.png", 2, 8)
    words = ["--guide", "lpips", "--lpips-weights", lpips_weights, "--out", tmp_path / "out"]
    assert superres(runs["plain"], tmp_path / "a.png", *words) == 2
    assert "a.png: is drawn as 8 x 32 pixels" in caplog_ldm.text


def test_a_model_of_many_channels_says_what_it_takes(tmp_path, caplog_ldm):
    config = enlarging()
    params = config["model"]["params"]
    network = params["first_stage_config"]["params"]["ddconfig"]
    network |= {"in_channels": 13, "out_ch": 13}
    params["unet_config"]["params"]["in_channels"] = 17
    torch.save(instantiate_model(config["model"]).state_dict(), tmp_path / "weights.ckpt")
    config = write(tmp_path / "config.yaml", config)
    save(tmp_path / "a.png", 8, 8)
    words = [tmp_path / "weights.ckpt", tmp_path / "a.png", "--config", config]
    assert superres(*words, "--out", tmp_path / "out") == 2
    assert "a.png: cannot be read: has 3 channels, expected 13" in caplog_ldm.text
