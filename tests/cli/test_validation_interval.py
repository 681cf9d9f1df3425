"""How often a training validates, against the batches that an epoch has."""

from pathlib import Path

import pytest
import pytorch_lightning as pl

from ldm.cli.train import _check_validation, train
from ldm.config import ConfigError
from ldm.data.module import DataModuleFromConfig
from tests.cli.runs import first_stage, write


def scenes(size):
    params = {"size": 16, "length": size}
    target = "ldm.data.shapes.ShapesDataset"
    data = DataModuleFromConfig(
        batch_size=8,
        train={"target": target, "params": params},
        validation={"target": target, "params": params},
    )
    data.setup()
    return data


@pytest.mark.parametrize(
    ("size", "accumulate", "options", "batches"),
    [
        (96, 1, {}, 12),
        (100, 5, {}, 10),  # two steps of 40 images
        (8, 4, {}, 4),  # one step, of four rounds
        (96, 1, {"limit_train_batches": 5}, 5),
        (96, 1, {"limit_train_batches": 0.5}, 6),
        (96, 1, {"limit_train_batches": 50}, 12),
    ],
)
def test_interval_is_at_most_the_batches_of_an_epoch(size, accumulate, options, batches):
    trainer = pl.Trainer(accelerator="cpu", logger=False, **options)
    data = scenes(size)
    _check_validation({"val_check_interval": batches}, data, trainer, accumulate)
    with pytest.raises(ConfigError, match=f"{batches + 1}, but an epoch has {batches} batches"):
        _check_validation({"val_check_interval": batches + 1}, data, trainer, accumulate)


@pytest.mark.parametrize(
    "options", [{"limit_val_batches": 0}, {"fast_dev_run": True}, {"check_val_every_n_epoch": None}]
)
def test_any_interval_will_do_where_no_epoch_is_divided_by_it(options):
    options = {"val_check_interval": 99, **options}
    trainer = pl.Trainer(accelerator="cpu", logger=False, **options)
    _check_validation(options, scenes(8), trainer, 1)


@pytest.mark.slow
def test_set_smaller_than_a_step_is_validated_within_its_epoch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = first_stage()
    config["data"]["params"]["train"]["params"]["length"] = 8
    config["lightning"]["trainer"] |= {"accumulate_grad_batches": 4, "val_check_interval": 4}
    run = train(["-b", write(Path("config.yaml"), config), "-t", "--max_steps", "1"])
    (metrics,) = (run.path / "metrics").glob("*/metrics.csv")
    assert "val/rec_loss" in metrics.read_text()
