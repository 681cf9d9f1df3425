"""What is found by holding one example of the data against the model."""

import numpy as np
import pytest
import torch

from ldm.cli.train import main
from ldm.config import instantiate_model
from ldm.losses.perceptual import LPIPS
from tests.cli.runs import first_stage, second_stage, unconditional, write


class Pairs:
    """Examples as torchvision's data sets have them."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return np.zeros((16, 16, 3), np.uint8), index


PAIRS = {"target": f"{__name__}.Pairs"}


@pytest.fixture
def check(tmp_path, monkeypatch, caplog_ldm):
    """Check a configuration without training; its exit code and what was said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LDM_TRUST", "tests")

    def check(config, *words):
        path = write(tmp_path / "config.yaml", config)
        return main(["-b", path, "--gpus", "cpu", *words]), caplog_ldm.text

    return check


@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_example_that_is_no_mapping_is_named_by_its_set(check, split):
    config = first_stage()
    params = config["data"]["params"]
    if split == "validation":
        del params["train"]
    params[split] = PAIRS
    code, said = check(config)
    assert code == 2
    assert f"data.params.{split}: an example is of type tuple; expected a mapping" in said


@pytest.mark.parametrize(
    "word",
    [
        "model.params.embed_dim=0",
        "model.params.ddconfig.num_res_blocks=-1",
        "model.params.ddconfig.ch_mult.0=-1",
        "lightning.callbacks.image_logger.params.max_images=0",
    ],
)
def test_a_number_out_of_range_is_named(check, word):
    code, said = check(first_stage(), word)
    assert code == 2
    assert f"{word.partition('=')[0].removesuffix('.0')}: expected" in said
    assert "int >= 1" in said


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("caption", "of type str"),
        ("class_label", "of type int"),
        ("segmentation", "int64 of shape (16, 16)"),
    ],
)
@pytest.mark.parametrize(
    ("stage", "parameter"), [(first_stage, "image_key"), (unconditional, "first_stage_key")]
)
def test_an_entry_that_is_no_image_is_named(check, stage, parameter, key, found):
    code, said = check(stage(), f"model.params.{parameter}={key}")
    assert code == 2
    expected = f"data.params.train: {key!r}, which model.params.{parameter} names, is {found}"
    assert expected in said


ENCODER = "model.params.ddconfig"
FIRST = "model.params.first_stage_config.params.ddconfig"


class Images:
    """Float images of any size and channels."""

    def __init__(self, shape):
        self.shape = shape

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"image": np.zeros(self.shape, np.float32)}


def images(stage, *shape):
    config = stage()
    target = f"{__name__}.Images"
    config["data"]["params"]["train"] = {"target": target, "params": {"shape": list(shape)}}
    del config["data"]["params"]["validation"]
    return config


@pytest.mark.parametrize(("stage", "place"), [(first_stage, ENCODER), (unconditional, FIRST)])
def test_images_and_a_network_of_different_channels_are_both_named(check, stage, place):
    word = [] if stage is first_stage else [f"{FIRST.removesuffix('.ddconfig')}.ckpt_path=null"]
    code, said = check(images(stage, 16, 16, 4), *word)
    assert code == 2
    assert f"{place}.in_channels: 3, but the images of data.params.train have 4 channels" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([f"{ENCODER}.in_channels=4"], f"{ENCODER}.out_ch: 3, but the images of data"),
        ([f"{ENCODER}.in_channels=4", f"{ENCODER}.out_ch=4"], "disc_in_channels: 3, expected 4"),
    ],
)
def test_each_part_of_a_first_stage_that_has_other_channels_is_named(check, words, expected):
    code, said = check(images(first_stage, 16, 16, 4), *words)
    assert code == 2
    assert expected in said


LOSS = "model.params.lossconfig.params"
MANY = [f"{ENCODER}.in_channels=13", f"{ENCODER}.out_ch=13", f"{LOSS}.disc_in_channels=13"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("null", "got 13; choose with lossconfig.params.lpips_channels"),
        ("[0,1,13]", "lpips_channels=[0, 1, 13]: images have 13 channels"),
        ("[0,1]", "lpips_channels=[0, 1]: expected three channels"),
        ("all", "lpips_channels: expected list of int or 'each' or None, got 'all'"),
    ],
)
def test_what_lpips_cannot_compare_is_named(check, choice, expected):
    words = [f"{LOSS}.perceptual_weight=1", f"{LOSS}.lpips_channels={choice}"]
    code, said = check(images(first_stage, 16, 16, 13), *MANY, *words)
    assert code == 2
    assert expected in said


def lpips_file(directory, **changed):
    """A file of LPIPS weights, all zero, which takes no room; `changed` shapes by name."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in LPIPS().state_dict().items()}
    path = directory / "lpips.pth"
    torch.save({k: torch.zeros(()).expand(s) for k, s in (shapes | changed).items()}, path)
    return path


@pytest.mark.parametrize("choice", ["[3,2,1]", "each"])
def test_lpips_compares_the_channels_that_are_chosen(check, tmp_path, choice):
    words = [f"{LOSS}.perceptual_weight=1", f"{LOSS}.lpips_channels={choice}"]
    words.append(f"{LOSS}.lpips_weights={lpips_file(tmp_path)}")
    code, said = check(images(first_stage, 16, 16, 13), *MANY, *words)
    assert code == 0, said


@pytest.mark.parametrize(
    ("size", "nearest"),
    [((24, 41), "24 x 40 or 24 x 42"), ((1, 40), "2 x 40"), ((17, 15), "16 x 14 or 18 x 16")],
)
@pytest.mark.parametrize("stage", [first_stage, unconditional])
def test_a_size_that_the_first_stage_does_not_divide_is_named(check, stage, size, nearest):
    code, said = check(images(stage, *size, 3))
    assert code == 2
    assert f"data.params.train: images of 3 channels, {size[0]} x {size[1]}, do not fit" in said
    assert f"must be multiples of f = 2; the nearest: {nearest}" in said


TRAINS = pytest.mark.parametrize("train", [[], ["-t"]], ids=["checked", "trained"])


@pytest.fixture
def nothing_left(tmp_path):
    """There is no run directory in the end."""
    yield
    assert not (tmp_path / "logs").exists()


@TRAINS
def test_missing_weights_of_lpips_are_named_before_anything_begins(
    check, tmp_path, monkeypatch, nothing_left, train
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    code, said = check(first_stage(), f"{LOSS}.perceptual_weight=1", *train)
    assert code == 2
    assert "LPIPS has no weights" in said
    assert "perceptual_weight: 0" in said
    assert "run directory" not in said


@TRAINS
def test_damaged_weights_of_lpips_are_named_as_a_damaged_checkpoint_is(
    check, tmp_path, nothing_left, train
):
    path = tmp_path / "lpips.pth"
    path.write_bytes(lpips_file(tmp_path).read_bytes()[:2000])
    words = [f"{LOSS}.perceptual_weight=1", f"{LOSS}.lpips_weights={path}"]
    code, said = check(first_stage(), *words, *train)
    assert code == 2
    expected = f"{LOSS}.lpips_weights: {path}: cannot be read as a checkpoint; it is damaged or"
    assert expected in said
    assert "weights_only" not in said


def test_weights_of_lpips_in_the_cache_are_read_before_anything_begins(
    check, tmp_path, monkeypatch
):
    cache = tmp_path / "checkpoints"
    cache.mkdir()
    file = lpips_file(tmp_path).rename(cache / "vgg16-397923af.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert check(first_stage(), f"{LOSS}.perceptual_weight=1")[0] == 0
    file.write_bytes(file.read_bytes()[:2000])
    code, said = check(first_stage(), f"{LOSS}.perceptual_weight=1")
    assert code == 2
    assert f"{file}: cannot be read as a checkpoint" in said


def test_weights_of_another_network_than_lpips_are_named(check, tmp_path):
    other = lpips_file(tmp_path, **{"net.slice1.0.weight": (8, 3, 3, 3)})
    words = [f"{LOSS}.perceptual_weight=1", f"{LOSS}.lpips_weights={other}"]
    code, said = check(first_stage(), *words)
    assert code == 2
    assert "size mismatch for net.slice1.0.weight" in said


def test_a_checkpoint_may_bring_the_weights_of_lpips(check, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    config = first_stage()
    config["model"]["params"]["lossconfig"]["params"]["perceptual_weight"] = 1
    with torch.device("meta"):
        state = instantiate_model(config["model"]).state_dict()
    weights = {key: torch.zeros(()).expand(value.shape) for key, value in state.items()}
    torch.save({"state_dict": weights}, tmp_path / "whole.ckpt")
    code, said = check(config, f"model.params.ckpt_path={tmp_path / 'whole.ckpt'}")
    assert code == 0, said


@TRAINS
@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], "0.25, makes images of 16 pixels 4 pixels small"),
        (["model.params.batch_resize_range=[32,48]"], "images of 32 pixels 8 pixels small"),
    ],
)
def test_equivariance_that_leaves_too_little_is_named_before_anything_begins(
    check, nothing_left, train, sizes, expected
):
    words = ["model.params.equivariance={scales: [0.25, 1.0]}", *sizes, *train]
    code, said = check(first_stage(), *words)
    assert code == 2
    assert "model.params.equivariance.scales: the lowest, " in said
    assert expected in said


def test_equivariance_that_leaves_enough_passes(check):
    assert check(first_stage(), "model.params.equivariance={scales: [0.75, 1.0]}")[0] == 0


@TRAINS
def test_statistics_of_a_checkpoint_that_is_not_named_are_refused_before_anything_begins(
    check, nothing_left, train
):
    config = unconditional()
    config["model"]["params"] |= {"latent_stats": "latents.json", "scale_by_std": False}
    code, said = check(config, *train)
    assert code == 2
    expected = "model.params.latent_stats: it is of a checkpoint of the first stage, but first_"
    assert expected in said


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize(("stage", "place"), [(first_stage, ENCODER), (unconditional, FIRST)])
def test_another_set_of_other_channels_than_the_first_stage_is_named(check, stage, place, split):
    config = stage()
    params = {"shape": [16, 16, 4]}
    config["data"]["params"][split] = {"target": f"{__name__}.Images", "params": params}
    code, said = check(config, "-t")
    assert code == 2
    assert f"{place}.in_channels: 3, but the images of data.params.{split} have 4 channels" in said


@pytest.mark.parametrize("split", ["validation", "test"])
def test_another_set_that_has_no_image_is_named(check, split):
    config = first_stage()
    config["data"]["params"][split] = PAIRS
    code, said = check(config)
    assert code == 2
    assert f"data.params.{split}: an example is of type tuple" in said


@TRAINS
@pytest.mark.parametrize("precision", ["16-mixed", "64-true", "bf16-true"])
def test_a_precision_in_which_a_first_stage_does_not_train_is_refused_on_any_device(
    check, nothing_left, train, precision
):
    code, said = check(first_stage(), "--precision", precision, *train)
    assert code == 2
    assert f"precision={precision}: a first stage trains in" in said


@pytest.mark.parametrize("precision", ["32", "32-true", "bf16", "bf16-mixed"])
def test_a_precision_in_which_a_first_stage_trains_passes(check, precision):
    assert check(first_stage(), "--precision", precision)[0] == 0


def test_a_layout_needs_a_token_for_every_class(check):
    config = second_stage()
    params = config["model"]["params"]
    tau = {"n_embed": 16, "n_layer": 1, "num_classes": 23, "vocab_size": 125}
    params["cond_stage_key"] = "layout"
    params["cond_stage_config"] = {
        "target": "ldm.conditioning.layout.LayoutEmbedder",
        "params": tau,
    }
    for name in ("train", "validation"):
        data = {"source": config["data"]["params"][name]}
        config["data"]["params"][name] = {"target": "ldm.data.layouts.Layouts", "params": data}
    params["first_stage_config"]["params"]["ckpt_path"] = None
    code, said = check(config)
    assert code == 2
    place = "model.params.cond_stage_config"
    assert f" {place}.params.num_classes: 23, but the data has 24 classes" in said
    tau["num_classes"] = 24
    assert check(config)[0] == 0
