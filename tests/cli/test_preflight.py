"""What is found by holding one example of the data against the model."""

import numpy as np
import pytest

from ldm.cli.train import main
from tests.cli.runs import first_stage, unconditional, write


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


@pytest.mark.parametrize("choice", ["[3,2,1]", "each"])
def test_lpips_compares_the_channels_that_are_chosen(check, choice):
    words = [f"{LOSS}.perceptual_weight=1", f"{LOSS}.lpips_channels={choice}"]
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
