"""First stages of other images than square photographs, from the files to the pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.cli.train import main
from ldm.config import instantiate_model
from ldm.io.checkpoint import load_state
from ldm.tensor import to_uint8
from tests.cli.jobs import draw
from tests.cli.runs import first_stage, only_run, unconditional, write
from tests.data.deep_files import levels, write_png

F8 = {"ch": 8, "ch_mult": [1, 1, 1, 1], "num_groups": 4, "dropout": 0.0, "resolution": 24}
KINDS = {
    "rgb": {"channels": 3},
    "grey": {"channels": 1},
    "rgba": {"channels": 4},
    "16 bits": {"channels": 3, "dtype": "float32"},
    "stacks": {"channels": 13, "dtype": "float32", "value_range": [0, 10000]},
}


def save(root, kind):
    """Eight files of 48 x 80."""
    root.mkdir()
    for number in range(8):
        numbers = levels(48, 80, 4, seed=number)
        if kind == "stacks":
            stack = np.tile(numbers // 7, (1, 1, 4))[..., :13]
            np.save(root / f"{number}.npy", stack)
        elif kind == "16 bits":
            write_png(root / f"{number}.png", numbers[..., :3])
        else:
            Image.fromarray((numbers >> 8).astype(np.uint8)).save(root / f"{number}.png")


def config(root, kind):
    """KL f8 with an adversarial game from the first step."""
    made, channels = first_stage(), KINDS[kind]["channels"]
    params = made["model"]["params"]
    params["ddconfig"] |= {**F8, "in_channels": channels, "out_ch": channels}
    loss = {"disc_start": 0, "disc_num_layers": 1, "disc_ndf": 8, "disc_in_channels": channels}
    params["lossconfig"]["params"] = {**loss, "perceptual_weight": 0}
    for split in ("train", "validation"):
        folder = {"root": str(root), "size": [24, 40], "split": split, "val_fraction": 0.3}
        made["data"]["params"][split] = {
            "target": "ldm.data.folder.ImageFolder",
            "params": {**folder, **KINDS[kind], "flip_p": 0.5},
        }
    made["data"]["params"]["batch_size"] = 2
    made["lightning"]["trainer"] |= {"max_steps": 2, "val_check_interval": 1}
    made["lightning"]["callbacks"]["image_logger"]["params"]["batch_frequency"] = 2
    return made


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_first_stage_trains_on_images_of_any_kind(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "images", kind)
    path = write(tmp_path / "config.yaml", config(tmp_path / "images", kind))
    assert main(["-t", "-b", path, "--gpus", "cpu"]) == 0
    run = only_run(tmp_path / "logs")
    weights = load_state(run / "checkpoints" / "last.ckpt")
    assert all(value.isfinite().all() for value in weights.values() if value.is_floating_point())
    assert weights["decoder.conv_out.weight"].shape[0] == KINDS[kind]["channels"]
    for split in ("train", "val"):
        pictures = sorted((run / "images" / split).glob("*_gs-000002_*.png"))
        names = [picture.name.split("_")[0] for picture in pictures]
        assert names == ["inputs", "reconstructions", "samples"]
        with Image.open(pictures[0]) as picture:
            assert picture.mode == "RGB"
            assert picture.height in (24, 28)  # one image has no margin


@pytest.mark.slow
def test_the_picture_of_a_stack_shows_its_first_three_channels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    stack = np.zeros((48, 80, 13), np.uint16) + np.arange(13, dtype=np.uint16) * 1000
    for number in range(8):
        np.save(tmp_path / "images" / f"{number}.npy", stack)
    path = write(tmp_path / "config.yaml", config(tmp_path / "images", "stacks"))
    words = ["data.params.train.params.value_range=[0,12750]"]
    words += ["data.params.validation.params.value_range=[0,12750]"]
    assert main(["-t", "-b", path, "--gpus", "cpu", *words]) == 0
    (shown,) = (only_run(tmp_path / "logs") / "images" / "val").glob("inputs_gs-000002_*.png")
    with Image.open(shown) as picture:
        assert picture.getpixel((20, 12)) == (0, 20, 40)


@pytest.mark.slow
def test_a_hole_in_an_array_is_named_and_training_goes_on(tmp_path, monkeypatch, caplog_ldm):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "images", "stacks")
    broken = np.load(tmp_path / "images/0.npy").astype(np.float32)
    broken[5, 6, 7] = np.nan
    np.save(tmp_path / "images/0.npy", broken)
    path = write(tmp_path / "config.yaml", config(tmp_path / "images", "stacks"))
    words = ["data.params.train.params.split=all", "data.params.validation=null"]
    words += ["--max_steps", "8"]  # two epochs, so that each image is seen
    assert main(["-t", "-b", path, "--gpus", "cpu", *words]) == 0
    assert "0.npy (nan at [5, 6, 7] is outside 0..10000) is bad" in caplog_ldm.text


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (4, "RGBA"), (13, "RGB")])
def test_what_is_drawn_is_written_as_far_as_a_png_holds_it(tmp_path, channels, mode):
    block = unconditional()["model"]
    decoder = block["params"]["first_stage_config"]["params"]["ddconfig"]
    block["params"]["first_stage_config"]["params"]["ddconfig"] = {**decoder, "out_ch": channels}
    model = instantiate_model(block).eval()
    draw(model, tmp_path, "--steps", 2, "--n", 1, seed=7)
    want = to_uint8(model.sample([7], steps=2))[0, ..., : 1 if mode == "L" else len(mode)]
    with Image.open(tmp_path / "00000.png") as picture:
        assert picture.mode == mode
        np.testing.assert_array_equal(np.asarray(picture).reshape(want.shape), want)
    assert (tmp_path / "grid.png").is_file()


def test_a_codebook_of_another_size_is_named_with_both_shapes(tmp_path, monkeypatch, caplog_ldm):
    monkeypatch.chdir(tmp_path)
    made = first_stage()
    made["model"]["target"] = "ldm.models.autoencoder.VQModel"
    params = made["model"]["params"]
    params["ddconfig"] |= {"double_z": False}
    params |= {"n_embed": 16, "ckpt_path": "vq.ckpt"}
    loss = "ldm.losses.autoencoder.VQLPIPSWithDiscriminator"
    params["lossconfig"]["target"] = loss
    torch.save({"state_dict": {"quantize.embedding.weight": torch.zeros(8, 4)}}, "vq.ckpt")
    assert main(["-b", write(tmp_path / "config.yaml", made), "--gpus", "cpu"]) == 2
    assert "quantize.embedding.weight (file (8, 4), model (16, 4))" in caplog_ldm.text
