"""Weights that are not finite end a training and are never written over good ones."""

import os

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy

from ldm.callbacks.checked import CheckedTrainer
from ldm.callbacks.checkpoints import LastCheckpoint
from ldm.callbacks.divergence import Diverged, non_finite
from ldm.callbacks.signals import signals_restored
from ldm.models.ema import EMA
from tests.models.processes import in_two_processes

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")

GOOD = 3  # steps


class Line(pl.LightningModule):
    """A weight and its average, of which one is spoilt after step GOOD."""

    def __init__(self, spoilt="line.weight", value=float("nan")):
        super().__init__()
        self.line = torch.nn.Linear(1, 1)
        self.average = EMA(self.line)
        self.spoilt, self.value = spoilt, value

    def training_step(self, batch, batch_idx):
        return self.line(batch).mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.line(batch).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.line.parameters(), lr=0.0)

    def on_train_batch_start(self, batch, batch_idx):
        if self.global_step == GOOD and self.spoilt:
            self.get_parameter(self.spoilt).data.fill_(self.value)


class Failure(pl.Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == GOOD + 1:
            raise RuntimeError("the callback's own error")


def fit(directory, model, *callbacks, **options):
    settings = {"max_steps": 6, "logger": False, "default_root_dir": directory, **options}
    trainer = CheckedTrainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        num_sanity_val_steps=0,
        enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    data = torch.utils.data.DataLoader(torch.ones(8, 1))
    with signals_restored():
        trainer.fit(model, data, data)
    return trainer


def read(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("spoilt", ["line.weight", "average.module.bias"])
def test_training_ends_and_the_last_good_checkpoint_stays(tmp_path, caplog_ldm, spoilt, value):
    with pytest.raises(Diverged) as ended:
        fit(tmp_path, Line(spoilt, value), LastCheckpoint(tmp_path, every_n_steps=1))
    assert ended.value.code == 1
    (said,) = (each.getMessage() for each in caplog_ldm.records if each.levelname == "ERROR")
    assert "after step 4 1 of 4 tensors of the weights are not finite" in said
    assert f"{tmp_path / 'last.ckpt'} is kept" in said
    assert read(tmp_path / "last.ckpt")["global_step"] == GOOD
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_what_there_is_to_go_on_from_is_not_named_where_there_is_nothing(tmp_path, caplog_ldm):
    with pytest.raises(Diverged):
        fit(tmp_path, Line(), LastCheckpoint(tmp_path, every_n_steps=5))
    assert "nothing had been saved yet" in caplog_ldm.text
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("weights_only", [True, False])
def test_best_checkpoint_is_finite(tmp_path, weights_only):
    best = ModelCheckpoint(
        tmp_path,
        filename="{step}",
        monitor="val/loss",
        save_top_k=3,
        save_weights_only=weights_only,
    )
    with pytest.raises(Diverged):
        fit(tmp_path, Line(), best, val_check_interval=2)
    assert os.listdir(tmp_path) == ["step=2.ckpt"]


def test_another_exception_does_not_write_them_either(tmp_path, caplog_ldm):
    last = LastCheckpoint(tmp_path, every_n_steps=GOOD)
    with pytest.raises(RuntimeError, match="the callback's own error"):
        fit(tmp_path, Line(), last, Failure())
    assert read(tmp_path / "last.ckpt")["global_step"] == GOOD
    assert "1 tensors are not finite" in caplog_ldm.text
    assert "stays as it was" in caplog_ldm.text


def test_finite_weights_are_written(tmp_path):
    trainer = fit(tmp_path, Line(spoilt=None), LastCheckpoint(tmp_path))
    assert trainer.global_step == read(tmp_path / "last.ckpt")["global_step"] == 6


def test_steps_that_write_nothing_are_not_checked(tmp_path, monkeypatch):
    checked = []

    def counting(model):
        checked.append(model)
        return non_finite(model)

    monkeypatch.setattr("ldm.callbacks.checked.non_finite", counting)
    last = LastCheckpoint(tmp_path, every_n_steps=4)
    fit(tmp_path, Line(spoilt=None), last, limit_val_batches=0)
    assert len(checked) == 2  # at step 4 and at the end


def test_number_of_tensors_that_are_not_finite():
    model = Line()
    assert non_finite(model) == 0
    model.line.weight.data.fill_(float("nan"))
    model.average.module.bias.data.fill_(float("inf"))
    assert non_finite(model) == 2
    assert non_finite(torch.nn.Identity()) == 0


def diverge(rank, world, directory, both):
    """The weights of the second process, or of both, are not finite."""
    torch.set_num_threads(1)
    model = Line("line.weight" if rank or both else None)
    strategy = DDPStrategy(broadcast_buffers=False)
    last = LastCheckpoint(directory, every_n_steps=1)
    with pytest.raises(Diverged):
        fit(directory, model, last, strategy=strategy, devices=world)
    (directory / f"ended-{rank}").touch()


@pytest.mark.slow
@pytest.mark.parametrize("both", [True, False])
def test_all_processes_end(tmp_path, both):
    in_two_processes(diverge, tmp_path, both)
    assert sorted(os.listdir(tmp_path)) == ["ended-0", "ended-1", "last.ckpt"]
    assert read(tmp_path / "last.ckpt")["global_step"] == GOOD
