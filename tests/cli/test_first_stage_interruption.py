"""A first stage that is killed in the middle of the game goes on as if it had not been."""

import csv

import pytest
import torch

from tests.cli.runs import first_stage, only_run, run_main, write
from tests.cli.test_interruption import (
    assert_same_training,
    finished,
    interrupted_by,
    read,
    resumed,
)
from tests.models.first_stages import EVERY_RULE

pytestmark = pytest.mark.slow

SAVED, KILLED, STEPS = 4, 6, 10  # the game is on from step 2, an epoch has 6


def played():
    """Everything that has state or draws: R1, LeCam, power iterations, augmentation, transforms."""
    config = first_stage()
    params = config["model"]["params"]
    params["use_ema"] = True
    params["equivariance"] = {"p": 0.5, "scales": [0.75, 1.0]}
    params["lossconfig"]["params"] |= EVERY_RULE
    config["lightning"]["modelcheckpoint"] = {"params": {"every_n_train_steps": SAVED}}
    return config


def quantized():
    """The published game, with a codebook that restarts; its use is that of all steps so far."""
    config = first_stage()
    config["model"]["target"] = "ldm.models.autoencoder.VQModel"
    params = config["model"]["params"]
    params["ddconfig"]["double_z"] = False
    params["lossconfig"]["target"] = "ldm.losses.autoencoder.VQLPIPSWithDiscriminator"
    params |= {
        "n_embed": 64,
        "quantizer_config": {
            "target": "ldm.nets.quantizer_ema.EMAVectorQuantizer",
            "params": {
                "n_e": 64,
                "e_dim": 4,
                "restart": {
                    "target": "ldm.nets.quantizer_cures.Restart",
                    "params": {"threshold": 0.5, "memory": 4},
                },
            },
        },
    }
    config["lightning"]["modelcheckpoint"] = {"params": {"every_n_train_steps": SAVED}}
    return config


def killed_and_resumed(configuration, directory, monkeypatch):
    """Run directories of an uninterrupted run and of one that went on, and the latter's half."""
    monkeypatch.chdir(directory)
    monkeypatch.setenv("LDM_TRUST", "tests")
    (directory / "whole").mkdir()
    whole = finished(configuration(), directory / "whole")
    config = interrupted_by(configuration(), "SignalAt", number=9, batch=KILLED)
    code, said = run_main(["-b", write(directory / "config.yaml", config), "-t"], directory)
    assert code == -9, said
    run = only_run(directory / "logs")
    half = read(run)
    assert half["global_step"] == SAVED
    assert_same_training(resumed(run), whole)
    want, got = losses(only_run(directory / "whole" / "logs")), losses(run)
    for step in range(SAVED, STEPS):
        assert got[step] == want[step], f"step {step}"
    return whole, half, want


def losses(run):
    """Everything that training logged, as text, by step; the last start counts."""
    found = {}
    for path in sorted(run.rglob("metrics*.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                values = {k: v for k, v in row.items() if k.startswith("train/") and v}
                found.setdefault(int(row["step"]), {}).update(values)
    return {step: values for step, values in found.items() if values}


def test_killed_game_goes_on_with_the_same_losses_to_the_last_bit(tmp_path, monkeypatch):
    whole, half, logged = killed_and_resumed(played, tmp_path, monkeypatch)
    assert half["state_dict"]["loss.lecam.mass"] > 0
    assert half["optimizer_states"][1]["state"]
    assert not torch.equal(
        whole["state_dict"]["loss.lecam.real"], half["state_dict"]["loss.lecam.real"]
    )
    game = {"train/r1", "train/lecam", "train/disc_loss", "train/d_weight"}
    assert game <= logged[STEPS - 1].keys()


def test_killed_codebook_goes_on_with_the_same_use_of_its_codes(tmp_path, monkeypatch):
    whole, half, logged = killed_and_resumed(quantized, tmp_path, monkeypatch)
    assert "train/codebook_usage" in logged[STEPS - 1]
    codes = [each["first_stage"]["codes"][0] for each in (half, whole)]
    assert [int((c >= 0).sum()) for c in codes] == [SAVED * 4 * 64, STEPS * 4 * 64]
    moved = [each["state_dict"]["quantize.usage"] for each in (half, whole)]
    assert not torch.equal(*moved)
