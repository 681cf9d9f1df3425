"""The shipped configurations: each builds, fits its twin, and trains through the command line."""

import pytest
import torch
from omegaconf import OmegaConf

from ldm.cli.train import main
from ldm.config import check, instantiate_model, load, locate, model_block
from ldm.io.checkpoint import load_state
from ldm.io.compvis import from_published
from tests.data.photographs import mixed_directory, synset_directories
from tests.reference_state_dicts import meta_state
from tests.shipped_configs import (
    CONFIGS,
    FULL_SIZE,
    ROOT,
    entries,
    name_of,
    plain,
    previews_in_two_steps,
    shrunk,
)

# second stage -> the first stage it is made for
TWINS = {
    "ldm-kl-f8": "autoencoder-kl-f8",
    "tiny/ldm-uncond": "tiny/autoencoder-kl",
    "tiny/ldm-class": "tiny/autoencoder-kl",
    "tiny/ldm-text": "tiny/autoencoder-kl",
    "tiny/ldm-layout": "tiny/autoencoder-kl",
    "tiny/ldm-vq": "tiny/autoencoder-vq",
    "tiny/ldm-retrieval": "tiny/autoencoder-kl",
    "tiny/ldm-superres": "tiny/autoencoder-kl",
    "tiny/ldm-semantic": "tiny/autoencoder-vq",
    "tiny/ldm-inpaint": "tiny/autoencoder-vq",
    "tiny/classifier": "tiny/autoencoder-vq",
    "classifier-cin-f4": "autoencoder/vq-f4",
    "quickstart/ldm": "quickstart/autoencoder",
}
# those of the paper's models are built and take a step in tests/test_full_size.py
BUILT = [path for path in CONFIGS if path not in FULL_SIZE]
TRAINED = [path for path in BUILT if "data" in plain(path)]


def meta_model(config):
    """The model of a configuration, without the files that it would start from."""
    overrides = [
        f"{path}=null" for path, key, _ in entries(config) if key in ("ckpt_path", "lpips_weights")
    ]
    block = model_block(OmegaConf.merge(config, OmegaConf.from_dotlist(overrides)))
    with torch.device("meta"):
        return instantiate_model(block)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("images") / "photographs"
    mixed_directory(directory)
    synset_directories(directory.with_name("synsets"))
    return directory


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_a_shipped_configuration_is_free_of_errors(path, photographs, monkeypatch):
    monkeypatch.chdir(ROOT)
    check(load([path], shrunk(plain(path), photographs)))


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_a_shipped_configuration_names_each_class_where_it_is_defined(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for _, key, target in entries(plain(path)):
        if key == "target" and target.startswith("ldm."):
            found = locate(target)
            assert f"{found.__module__}.{found.__qualname__}" == target


@pytest.mark.parametrize("path", BUILT, ids=name_of)
def test_a_shipped_model_builds_at_its_full_size_without_memory(path):
    model = meta_model(plain(path))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_every_second_stage_is_held_against_its_first_stage():
    second = {name_of(path) for path in CONFIGS if path.stem.startswith("ldm")}
    assert second <= set(TWINS)


@pytest.mark.parametrize("name", [n for n in TWINS if (ROOT / f"configs/{n}.yaml").is_file()])
def test_a_second_stage_describes_the_first_stage_it_is_made_for(name):
    first, second = (
        plain(ROOT / f"configs/{each}.yaml")["model"]["params"] for each in (TWINS[name], name)
    )
    inner = second["first_stage_config"]["params"]
    for key in ("ddconfig", "embed_dim", "n_embed"):
        assert inner.get(key) == first.get(key), key


@pytest.mark.parametrize(
    ("name", "published"),
    [("autoencoder-kl-f8", "first_stage_kl-f8"), ("ldm-kl-f8", "train_lsun_churches-ldm-kl-8")],
)
def test_the_pair_for_photographs_takes_published_weights(name, published):
    model, weights = meta_model(plain(ROOT / f"configs/{name}.yaml")), meta_state(published)
    wanted = model.state_dict()
    if "first_stage_model" not in dict(model.named_children()):
        wanted = {key: value for key, value in wanted.items() if not key.startswith("loss.")}
        weights = {key: value for key, value in weights.items() if not key.startswith("loss.")}
    given = from_published(weights, wanted)
    assert {key: value.shape for key, value in given.items()} == {
        key: value.shape for key, value in wanted.items()
    }


def test_a_second_file_changes_some_values_of_the_first_and_an_override_has_the_last_word(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "model:\n  params:\n    ddconfig: {ch: 64, ch_mult: [1]}\ndata:\n  params: {batch_size: 2}"
    )
    base = ROOT / "configs/tiny/autoencoder-kl.yaml"
    config = load([base, tmp_path / "mine.yaml"], ["data.params.batch_size=3"])
    network = config.model.params.ddconfig
    assert (network.ch, network.num_res_blocks) == (64, 1)
    assert list(network.ch_mult) == [1], "a list is replaced whole"
    assert config.data.params.batch_size == 3
    assert config.data.params.train.params.length == 64


@pytest.mark.slow
@pytest.mark.parametrize("path", TRAINED, ids=name_of)
def test_a_shipped_configuration_takes_a_step_and_validates(
    path, photographs, tmp_path, monkeypatch
):
    monkeypatch.chdir(ROOT)
    config = plain(path)
    code = main(
        [
            *("--base", str(path), "--train", "--gpus", "cpu", "--logdir", str(tmp_path)),
            *("--max_steps", "1", "--limit_val_batches", "1", "--val_check_interval", "1"),
            *("--num_sanity_val_steps", "0", "--log_every_n_steps", "1"),
            *shrunk(config, photographs),
            *previews_in_two_steps(config),
            "lightning.callbacks.gradients.target=tests.shipped_configs.EveryGradient",
        ]
    )
    assert code == 0
    (run,) = tmp_path.iterdir()
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 1
    if "validation" in config["data"]["params"]:
        (metrics,) = run.rglob("metrics.csv")
        names = metrics.read_text().splitlines()[0].split(",")
        assert config["model"]["params"].get("monitor", "val/loss_simple_ema") in names


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TWINS if name.startswith("tiny/")])
def test_a_tiny_second_stage_trains_on_the_tiny_first_stage(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = ["--train", "--gpus", "cpu", "--max_steps", "1", "--limit_val_batches", "0"]
    runs = []
    for each in (TWINS[name], name):
        given = f"model.params.first_stage_config.params.ckpt_path={runs[0]}" if runs else None
        logdir = tmp_path / each.replace("/", "-")
        arguments = ["--base", f"configs/{each}.yaml", "--logdir", str(logdir), *options]
        assert main([*arguments, *([given] if given else [])]) == 0
        runs += logdir.glob("*/checkpoints/last.ckpt")
    first, second = map(load_state, runs)
    for key, value in second.items():
        if key.startswith("first_stage_model."):
            torch.testing.assert_close(value, first[key.removeprefix("first_stage_model.")])
