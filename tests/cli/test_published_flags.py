"""Flags of the 2022 scripts, on models in memory: what each asks for, and those without a use."""

import numpy as np
import pytest
from PIL import Image

from ldm.cli.sampling.classes import Sample
from ldm.cli.sampling.image_to_image import ImageToImage
from ldm.cli.sampling.semantic import Semantic
from ldm.cli.sampling.superres import Superres
from ldm.cli.sampling.text import TextToImage
from ldm.config import ConfigError
from ldm.samplers.names import sampler_named
from tests.cli.jobs import built, draw, job
from tests.cli.letters import captioned
from tests.cli.runs import pixels, unconditional
from tests.reference import fill


@pytest.fixture(scope="module")
def by_caption():
    return fill(captioned())


@pytest.fixture(scope="module")
def of_maps():
    config = unconditional()
    config["model"]["params"] |= {
        "cond_stage_key": "segmentation",
        "cond_stage_config": {
            "target": "ldm.conditioning.spatial.SpatialRescaler",
            "params": {"n_stages": 1, "in_channels": 25, "out_channels": 3},
        },
    }
    config["model"]["params"]["unet_config"]["params"]["in_channels"] = 7
    return built(config)


@pytest.fixture
def picture(tmp_path):
    """An image, alone in its directory."""
    path = tmp_path / "pictures" / "a.png"
    path.parent.mkdir()
    levels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(levels).save(path)
    return path


def test_iterations_multiply_the_images_of_each_caption(by_caption, tmp_path):
    words = ["--prompt", "a", "--prompt", "bb", "--n_samples", 3, "--n_iter", 2]
    made = job(by_caption, tmp_path, *words, task=TextToImage())
    assert [item["caption"] for item in made.items] == ["a"] * 6 + ["bb"] * 6
    assert [item["seed"] for item in made.items] == list(range(12))
    own = job(by_caption, tmp_path, *words[:4], "--n_iter", 2, task=TextToImage())
    assert len(own.items) == 16  # of 4 each by default


def test_iterations_multiply_the_images_of_each_image(plain, picture, tmp_path):
    made = job(plain, tmp_path, picture, "--n", 2, "--n_iter", 3, task=ImageToImage())
    assert len(made.items) == 6


def test_how_many_is_a_single_letter_of_sample(plain, tmp_path):
    assert len(job(plain, tmp_path, "-n", 5).items) == 5
    with pytest.raises(ConfigError, match="unrecognized arguments: -n 5"):
        job(plain, tmp_path, "-n", 5, task=ImageToImage())


@pytest.mark.parametrize("flag", ["-v", "--vanilla_sample"])
@pytest.mark.parametrize("more", [[], ["--sampler", "ddpm", "--steps", 1000]])
def test_a_vanilla_sample_is_ancestral_at_every_noise_level(plain, tmp_path, flag, more):
    made = job(plain, tmp_path, "-n", 1, flag, *more)
    assert made.options["sampler"] == sampler_named("ddpm")
    assert made.options["steps"] == plain.schedule.num_timesteps == 1000
    assert (made.record.flags["sampler"], made.record.flags["steps"]) == ("ddpm", 1000)


def test_a_model_without_noise_levels_has_no_vanilla_sample(tmp_path):
    config = unconditional()
    params = config["model"]["params"]
    del params["linear_start"], params["linear_end"]
    params["schedule_config"] = {"target": "ldm.diffusion.schedule.RectifiedFlow"}
    with pytest.raises(ConfigError, match="--vanilla_sample: this model's noise is continuous"):
        job(built(config), tmp_path, "-v")


@pytest.mark.parametrize(("published", "ours"), [("autocast", "bf16"), ("full", "fp32")])
def test_a_precision_has_two_names(plain, tmp_path, published, ours):
    made = job(plain, tmp_path, "-n", 1, "--precision", published)
    assert made.args.precision == made.record.flags["precision"] == ours


@pytest.mark.parametrize(
    ("rows", "shape"),
    [(5, (20, 92)), (2, (56, 38)), (0, (38, 56)), (9, (20, 92))],  # a margin of 2 around each
)
def test_the_published_number_of_rows_is_that_of_the_grids_columns(plain, tmp_path, rows, shape):
    draw(plain, tmp_path, "-n", 5, "--steps", 1, "--n_rows", rows)
    assert pixels(tmp_path / "grid.png").shape == (*shape, 3)


def test_latents_are_named_as_they_are(plain, tmp_path):
    with_names = job(plain, tmp_path, "--C", 4, "--f", 2, "--H", 16, "--W", 24, "-n", 1)
    assert with_names.options["size"] == (8, 12)


def test_small_images_lie_in_a_directory(plain, picture, tmp_path):
    words = ["--indir", picture.parent, "--guide", "l2", "--factor", 2]
    made = job(plain, tmp_path, *words, task=Superres())
    assert [item["init"] for item in made.items] == [str(picture)]


def test_maps_lie_in_a_directory(of_maps, tmp_path):
    path = tmp_path / "maps" / "a.png"
    path.parent.mkdir()
    Image.fromarray(np.full((16, 16), 7, np.uint8)).save(path)
    made = job(of_maps, tmp_path, "--indir", path.parent, task=Semantic())
    assert [item["map"] for item in made.items] == [str(path)]


@pytest.mark.parametrize("task", [Superres, Semantic])
def test_without_a_directory_there_is_nothing_to_draw(plain, of_maps, tmp_path, task):
    model, words = (plain, ["--guide", "l2"]) if task is Superres else (of_maps, [])
    with pytest.raises(ConfigError, match=r"no (images|maps): name files or directories"):
        job(model, tmp_path, *words, task=task())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--n_iter", 0], "--n_iter 0: expected 1 or more"),
        (["--n_rows", -1], "--n_rows -1: expected 0, for a square grid, or more"),
        (["--C", 3], "--C 3: expected 4, the channels"),
        (["--f", 8], "--f 8: expected 2, pixels"),
        (["--skip_save"], "--skip_save: is not taken: .* --npz"),
        (["--laion400m"], "--laion400m: is not taken: .* RUN"),
        (["--fixed_code"], "--fixed_code: is not taken: .* --seed"),
    ],
)
def test_what_cannot_be_followed_is_one_line(by_caption, tmp_path, words, expected):
    with pytest.raises(ConfigError, match=expected):
        job(by_caption, tmp_path, "--prompt", "a", *words, task=TextToImage())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--plms"], "--sampler plms and --vanilla_sample: that is the sampler ddpm"),
        (["-c", 20], "--steps 20 and --vanilla_sample: that takes all 1000 noise levels"),
        (["-e", 1], "--eta: 1.0; ddpm has none"),
    ],
)
def test_a_vanilla_sample_is_of_one_kind(plain, tmp_path, words, expected):
    with pytest.raises(ConfigError, match=expected):
        job(plain, tmp_path, "-v", *words, task=Sample())
