"""What a user may get wrong ends with one clear error and code 2, and leaves nothing behind."""

import pytest
import torch

from ldm.cli.train import main
from tests.cli.runs import first_stage, run_main, second_stage, write

pytestmark = pytest.mark.slow  # most of it is the import of libraries, once for each fault

LIMIT = 60  # seconds; a few on an idle machine, of which nearly all go into importing libraries
CKPT = "model.params.first_stage_config.params.ckpt_path"
UNET = "model.params.unet_config.params"
LAST = "lightning.modelcheckpoint.params.every_n_train_steps"
PICTURES = "lightning.callbacks.image_logger.params.log_images_kwargs"

FAULTS = {
    "a misspelt key": (
        "first.yaml",
        ["model.params.embed_dimm=4"],
        ["model.params.embed_dimm", "AutoencoderKL", "did you mean 'embed_dim'?"],
    ),
    "a misspelt key that is passed on": (
        "first.yaml",
        ["model.params.ddconfig.dropuot=0.5"],
        ["model.params.ddconfig.dropuot", "did you mean 'dropout'?"],
    ),
    "an unknown target": (
        "first.yaml",
        ["model.target=ldm.models.autoencoder.AutoencoderKl"],
        ["model.target", "AutoencoderKl", "did you mean 'AutoencoderKL'?"],
    ),
    "a target that runs commands": (
        "first.yaml",
        ["model.target=os.system"],
        ["model.target", "os.system", "refused"],
    ),
    "a configuration that is not there": (
        "frist.yaml",
        [],
        ["frist.yaml", "no such file", "did you mean first.yaml?"],
    ),
    "a first stage's checkpoint that is not there": (
        "second.yaml",
        [f"{CKPT}=weigths.ckpt"],
        [CKPT, "weigths.ckpt", "no such checkpoint", "did you mean weights.ckpt?"],
    ),
    "a configuration in place of a checkpoint": (
        "second.yaml",
        [f"{CKPT}=first.yaml"],
        [CKPT, "first.yaml", "is a configuration, not a checkpoint"],
    ),
    "a first stage and a network of different channels": (
        "second.yaml",
        [f"{UNET}.in_channels=3"],
        [f"{UNET}.in_channels: 3", "AutoencoderKL has latents of 4 channels"],
    ),
    "a context of another width than tau_theta's": (
        "second.yaml",
        [f"{UNET}.context_dim=24"],
        [f"{UNET}.context_dim: 24", "ClassEmbedder gives tokens of width 16"],
    ),
    "devices that are not there": (
        "first.yaml",
        ["--gpus", "0,1"],
        ["--gpus 0,1", "CUDA device"],
    ),
    "a misspelt key of the pictures": (
        "second.yaml",
        [f"{PICTURES}.stepz=2"],
        [f"{PICTURES}.stepz", "did you mean 'steps'?"],
    ),
    "an encoder's key that the data does not have": (
        "second.yaml",
        ["model.params.cond_stage_config.params.key=klass"],
        ["model.params.cond_stage_config (its `key`): 'klass'", "class_label"],
    ),
    "an empty folder": (
        "folder.yaml",
        [],
        ["data.params.train", "empty", "no images"],
    ),
    "a negative batch size": (
        "first.yaml",
        ["data.params.batch_size=-4"],
        ["data.params.batch_size: -4", "expected 1 or more"],
    ),
    "a checkpoint of another model": (
        "second.yaml",
        [f"{CKPT}=weights.ckpt"],
        [
            CKPT,
            "weights.ckpt does not fit AutoencoderKL",
            "1 tensors match",
            "missing in the file: ",
            "unexpected in the file: 1 (stray)",
            "of another shape: 1 (encoder.conv_in.bias (file (3",
        ],
    ),
}


@pytest.fixture
def place(tmp_path):
    """A working directory with configurations, a checkpoint and an empty folder."""
    write(tmp_path / "first.yaml", first_stage())
    write(tmp_path / "second.yaml", second_stage())
    folder = first_stage()
    folder["data"]["params"]["train"] = {
        "target": "ldm.data.folder.ImageFolder",
        "params": {"root": "empty", "size": 16},
    }
    write(tmp_path / "folder.yaml", folder)
    (tmp_path / "empty").mkdir()
    weights = {
        "encoder.conv_in.weight": torch.zeros(32, 3, 3, 3),
        "encoder.conv_in.bias": torch.zeros(3),
        "stray": torch.zeros(1),
    }
    torch.save({"state_dict": weights}, tmp_path / "weights.ckpt")
    return tmp_path


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_clear_error_and_leaves_nothing_behind(place, fault):
    config, words, expected = FAULTS[fault]
    before = sorted(place.rglob("*"))
    gpus = [] if "--gpus" in words else ["--gpus", "cpu"]
    code, said = run_main(["-b", config, "-t", *words, *gpus], place, timeout=LIMIT)
    assert code == 2, said
    assert said.startswith("error: ")
    assert "Traceback" not in said
    assert [text for text in expected if text not in said] == [], said
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["model.params.monitor=val/rec_los"], ["model.params.monitor", "'val/rec_loss'"]),
        (["model.params.lossconfig.params.perceptual_weight=1"], ["LPIPS", "perceptual_weight: 0"]),
        ([f"{LAST}=0"], [f"{LAST}: 0", "1 or more"]),
        (["lightning.callbacks.throughput.params.every_n_steps=0"], ["every_n_steps is 0"]),
        (["--precision", "64-true"], ["precision=64-true", "bf16-mixed"]),
    ],
)
def test_a_start_that_fails_late_leaves_nothing_behind_either(
    place, monkeypatch, caplog_ldm, words, expected
):
    monkeypatch.chdir(place)
    monkeypatch.setenv("TORCH_HOME", str(place))  # where there are no weights
    before = sorted(place.rglob("*"))
    words = [*words, "--num_sanity_val_steps", "2"]
    assert main(["-b", "first.yaml", "-t", "-l", "new/logs", *words]) == 2
    assert [text for text in expected if text not in caplog_ldm.text] == []
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--max_steps", "ten"], ["lightning.trainer.max_steps", "expected int", "'ten'"]),
        (["--accumulate_grad_batches", "0"], ["accumulate_grad_batches: 0", "1 or more"]),
        (["--gradient_clip_val", "-1"], ["gradient_clip_val: -1", "0 or more"]),
        (["--precision", "bf17"], ["lightning.trainer.precision", "'bf17'"]),
        (["--accelerator", "abacus"], ["lightning.trainer", "abacus"]),
        (["--test"], ["--test", "`test:`"]),
        (["model.learning_rate=null"], ["model", "learning_rate"]),
        (["data.params.train.params.size=4"], ["data.params.train.params.size: 4", "at least 16"]),
        (["model.params.image_key=picture"], ["model.params.image_key", "'picture'", "caption"]),
        (["model.params.lossconfig.params.disc_num_layers=5"], ["16 x 16", "do not fit"]),
        (["lightning.callbacks.mine={}"], ["lightning.callbacks.mine", "target"]),
        ([f"{PICTURES}.only_input=true"], [f"{PICTURES}.only_input", "'only_inputs'"]),
        ([f"{PICTURES}=3"], [f"{PICTURES}: expected", "3"]),
        ([f"{PICTURES}.split=val"], [f"{PICTURES}.split", "image logger"]),
        (["lightning.logger.params.flush_sec=9"], ["logger.params: 'flush_sec'", "'flush_secs'"]),
        (["--val_check_interval", "1000"], ["val_check_interval: 1000", "an epoch has"]),
        (["--val_check_interval", "0"], ["val_check_interval: 0", "1 or more"]),
        (["--log_every_n_steps", "0"], ["log_every_n_steps: 0", "1 or more"]),
        (["-r", "logs/none"], ["logs/none", "no such run directory"]),
        (["-n", "x", "-r", "logs"], ["-n/--name", "-r/--resume"]),
    ],
)
def test_what_is_wrong_is_named(place, monkeypatch, caplog_ldm, words, expected):
    monkeypatch.chdir(place)
    assert main(["-b", "first.yaml", "-t", *words]) == 2
    assert [text for text in expected if text not in caplog_ldm.text] == [], caplog_ldm.text
    assert not (place / "logs").exists()


def test_without_any_configuration_the_flags_that_give_one_are_named(caplog_ldm):
    assert main(["-t"]) == 2
    assert "--base CONFIG.yaml" in caplog_ldm.text


def test_a_configuration_is_checked_without_being_trained(place, monkeypatch, caplog_ldm):
    monkeypatch.chdir(place)
    assert main(["-b", "first.yaml"]) == 0
    assert "-t" in caplog_ldm.text
    assert not (place / "logs").exists()
