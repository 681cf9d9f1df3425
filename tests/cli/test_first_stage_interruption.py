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

pytestmark = pytest.mark.slow

SAVED, KILLED, STEPS = 4, 6, 10  # the game is on from step 2, an epoch has 6


def configuration():
    """Everything that has state or draws: R1, LeCam, power iterations, augmentation, transforms."""
    config = first_stage()
    params = config["model"]["params"]
    params["use_ema"] = True
    params["equivariance"] = {"p": 0.5, "scales": [0.75, 1.0]}
    params["lossconfig"]["params"] |= {
        "disc_warmup": 1,
        "disc_loss": "non-saturating",
        "disc_spectral_norm": True,
        "disc_augment": ["color", "translation", "cutout"],
        "r1_weight": 1.0,
        "r1_every": 2,
        "lecam_weight": 0.1,
    }
    config["lightning"]["modelcheckpoint"] = {"params": {"every_n_train_steps": SAVED}}
    return config


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
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LDM_TRUST", "tests")
    (tmp_path / "whole").mkdir()
    whole = finished(configuration(), tmp_path / "whole")
    config = interrupted_by(configuration(), "SignalAt", number=9, batch=KILLED)
    code, said = run_main(["-b", write(tmp_path / "config.yaml", config), "-t"], tmp_path)
    assert code == -9, said
    run = only_run(tmp_path / "logs")
    half = read(run)
    assert half["global_step"] == SAVED
    assert half["state_dict"]["loss.lecam.mass"] > 0
    assert half["optimizer_states"][1]["state"]
    other = resumed(run)
    assert_same_training(other, whole)
    assert not torch.equal(
        other["state_dict"]["loss.lecam.real"], half["state_dict"]["loss.lecam.real"]
    )
    want, got = losses(only_run(tmp_path / "whole" / "logs")), losses(run)
    for step in range(SAVED, STEPS):
        assert got[step] == want[step], f"step {step}"
    assert {"train/r1", "train/lecam", "train/disc_loss", "train/d_weight"} <= want[
        STEPS - 1
    ].keys()
