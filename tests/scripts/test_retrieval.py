"""scripts/retrieve.py on a model that was trained on neighbours for two steps."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.cli.exits import exit_code
from ldm.cli.sampling.clip import digest_of_clip
from ldm.cli.sampling.entries import kind_of, require_script
from ldm.cli.sampling.retrieval import Retrieve
from ldm.conditioning.clip import FrozenCLIPTextEmbedder
from ldm.config import ConfigError, instantiate_model, without_checkpoints
from ldm.data.retrieval import Index
from ldm.data.shapes import ShapesDataset
from tests.cli.clips import save_clip
from tests.cli.jobs import built, draw, job
from tests.cli.runs import pixels, script, second_stage, trained
from tests.data.indexes import keys_of, save_index
from tests.reference_configs import published_config

WIDTH = 8  # of the small CLIP's embeddings


def by_neighbours(index):
    """A latent diffusion model that attends to two neighbours."""
    config = second_stage()
    params = config["model"]["params"]
    for key in ("cond_stage_key", "cond_stage_trainable", "conditioning_key"):
        del params[key]
    params["cond_stage_config"] = {
        "target": "ldm.conditioning.retrieval.NeighbourEmbedder",
        "params": {"embed_dim": WIDTH, "drop_rate": 0.1, "scale": 3.0},
    }
    params["unet_config"]["params"]["context_dim"] = WIDTH
    data = config["data"]["params"]
    del data["validation"]
    data["train"] = {
        "target": "ldm.data.retrieval.Neighbours",
        "params": {"source": data["train"], "index": str(index), "k": 2, "choose": "random"},
    }
    return config


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def place(tmp_path_factory, clip):
    """A directory with an index, another one, and a query image."""
    place = tmp_path_factory.mktemp("place")
    rows = [[(i + 1) % 10, (i + 2) % 10, (i + 3) % 10] for i in range(24)]
    keys = keys_of(ShapesDataset(16, length=24))
    save_index(place / "index", keys, rows, clip=digest_of_clip(str(clip)))
    save_index(place / "other", keys, rows, clip="1" * 64)
    Image.fromarray(ShapesDataset(16, length=3)[2]["image"]).save(place / "query.png")
    return place


@pytest.fixture(scope="module")
def run(place):
    """A run of two steps."""
    return str(trained(place, near=by_neighbours(place / "index"))["near"])


@pytest.fixture(scope="module")
def model(place):
    """The model with weights by rule: those of two steps hardly heed what they are told."""
    return built(by_neighbours(place / "index"))


def words_of(place, clip, *words):
    known = ("index", "other", "query.png")
    return ["--clip", clip, *[place / word if word in known else word for word in words]]


def test_texts_images_and_their_neighbours_are_told_apart(model, place, clip, tmp_path, caplog):
    caplog.set_level("INFO", "ldm")
    index = ["--index", "index", "--knn", 3]
    asked = {
        "text": ["--prompt", "red", "--prompt", "a"],
        "near": ["--prompt", "red", *index],
        "only": ["--prompt", "red", *index, "--query", "without"],
        "image": ["--image", "query.png"],
        "like": ["--image", "query.png", *index],
    }
    first = []
    for name, words in asked.items():
        words = [*words_of(place, clip, *words), "--n", 1, "--steps", 2]
        made = draw(model, tmp_path / name, *words, task=Retrieve())
        first += list(made.drawn())[:1]
    for i, one in enumerate(first):
        assert not any(np.array_equal(one, other) for other in first[:i]), i
    assert "'red' is near" in caplog.text
    text, alone = (pixels(tmp_path / "text" / name) for name in ("00001.png", "00000.png"))
    assert not np.array_equal(text, alone)


def test_what_is_told_is_the_texts_embedding_and_then_its_neighbours(model, place, clip, tmp_path):
    task = Retrieve()
    words = words_of(place, clip, "--prompt", "red", "--index", "index", "--knn", 3)
    made = job(model, tmp_path, *words, task=task)
    told = task.given(model, made.args, made.items).batch["neighbours"]
    assert told.shape == (4, 4, WIDTH)
    query = FrozenCLIPTextEmbedder(str(clip))(["red"])
    torch.testing.assert_close(told[0, :1], query)
    vectors = torch.from_numpy(Index.read(place / "index").embedded(np.arange(10)))
    nearest = (vectors @ query[0]).topk(3).indices
    torch.testing.assert_close(told[0, 1:], vectors[nearest])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "a", "--index", "other"], "--index .*embedded by the CLIP of SHA-256 1111"),
        (["--prompt", "a", "--knn", "3"], "--knn: there is no database to look in; give --index"),
        (["--prompt", "a", "--query", "without"], "--query without: leaves nothing to draw from"),
        (["--prompt", "a", "--image", "query.png", "--index", "index"], "say whether --query with"),
        (["--prompt", "a", "--class", "3"], "--class 3: this model was trained without classes"),
        (["--prompt", "a", "--index", "index", "--knn", "11"], "11 neighbours of 10 images"),
        ([], "no captions: give --prompt TEXT"),
    ],
)
def test_what_does_not_go_together_is_said(model, place, clip, tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        job(model, tmp_path, *words_of(place, clip, *words), task=Retrieve())


def test_a_clip_of_another_width_is_refused(clip, tmp_path):
    config = by_neighbours("none")
    params = config["model"]["params"]
    params["cond_stage_config"]["params"]["embed_dim"] = 16
    params["unet_config"]["params"]["context_dim"] = 16
    other = built(config)
    with pytest.raises(ConfigError, match="embeds in 8 numbers, the model was trained with 16"):
        job(other, tmp_path, "--clip", clip, "--prompt", "a", task=Retrieve())


@pytest.mark.slow
def test_a_trained_model_draws_and_draws_again(run, place, clip, tmp_path, caplog):
    words = words_of(place, clip, "--prompt", "red", "--index", "index", "--knn", 3)
    out = [*map(str, ["--out", tmp_path / "a", "--n", 3, "--steps", 3, "--device", "cpu"])]
    assert exit_code(script("retrieve"), [run, *map(str, words), *out]) == 0
    again = ["--from-png", tmp_path / "a" / "00001.png", "--out", tmp_path / "b"]
    assert exit_code(script("retrieve"), [*map(str, again), "--device", "cpu"]) == 0
    assert "the same to the last bit" in caplog.text
    assert np.array_equal(pixels(tmp_path / "a/00001.png"), pixels(tmp_path / "b/00001.png"))
    # a moved index is given again; another one is refused
    shutil.copy(place / "index", tmp_path / "moved")
    words = [*map(str, again[:2]), "--out", str(tmp_path / "c"), "--device", "cpu", "--index"]
    assert exit_code(script("retrieve"), [*words, str(tmp_path / "moved")]) == 0
    assert exit_code(script("retrieve"), [*words, str(place / "other")]) == 2


def test_the_scripts_name_each_other(model, clip, tmp_path):
    with pytest.raises(ConfigError, match=r"\(NeighbourEmbedder\); draw it with scripts/retrieve"):
        job(model, tmp_path)
    told = built(second_stage())
    with pytest.raises(ConfigError, match=r"draw it with scripts/sample.py"):
        job(told, tmp_path, "--clip", clip, "--prompt", "a", task=Retrieve())


@pytest.mark.slow
def test_the_published_model_reads_neighbours():
    block = without_checkpoints(published_config("rdm_768x768")["model"])
    with torch.device("meta"):
        model = instantiate_model(block)
    require_script("scripts/retrieve.py", model)
    (part,) = model.conditioner.parts
    assert (part.slot, kind_of(part), part.key) == ("crossattn", "neighbours", "nix")
    null = model.conditioner.null({"nix": torch.ones(2, 10, 768)})
    assert torch.equal(null.crossattn, torch.zeros(2, 10, 768))
