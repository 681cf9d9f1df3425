import os
import pickle
import signal

import pytest
import pytorch_lightning as pl
import torch

from ldm.callbacks.checkpoint_io import AtomicCheckpointIO
from ldm.callbacks.checkpoints import LastCheckpoint
from ldm.callbacks.monitor import MonitorCheck
from ldm.callbacks.signals import signals_restored
from ldm.config import ConfigError


def test_a_checkpoint_is_read_back_as_it_was_written(tmp_path):
    path = tmp_path / "new" / "last.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"global_step": 3, "x": torch.arange(4)}, path)
    read = io.load_checkpoint(path)
    assert read["global_step"] == 3
    assert torch.equal(read["x"], torch.arange(4))
    assert sorted(os.listdir(path.parent)) == [
        "last.ckpt",
        "manifest.json",
        "resume-000000003.ckpt",
    ]


def test_a_damaged_checkpoint_is_not_gone_on_from(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"global_step": 3, "x": torch.arange(400)}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"last\.ckpt: damaged, its bytes are not those"):
        AtomicCheckpointIO().load_checkpoint(path)


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


def test_reading_a_checkpoint_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Attack()}, "last.ckpt")
    with pytest.raises(pickle.UnpicklingError, match="unsupported GLOBAL"):
        AtomicCheckpointIO().load_checkpoint("last.ckpt", weights_only=False)
    assert not (tmp_path / "attacked").exists()


class Validated(pl.LightningModule):
    """Reports one metric of validation."""

    def validation_step(self, batch, _):
        self.log("val/loss", batch.mean())


@pytest.fixture
def trainer(tmp_path):
    trainer = pl.Trainer(logger=False, default_root_dir=tmp_path, accelerator="cpu")
    trainer.callback_metrics["val/loss"] = torch.zeros(())
    return trainer


def test_a_monitored_metric_that_is_not_reported_is_an_error_before_training(trainer):
    with pytest.raises(ConfigError, match="'val/los'; did you mean 'val/loss'"):
        MonitorCheck("val/los").on_sanity_check_end(trainer, Validated())
    with pytest.raises(ConfigError, match="it reports val/loss"):
        MonitorCheck("psnr").on_sanity_check_end(trainer, Validated())
    MonitorCheck("val/loss").on_sanity_check_end(trainer, Validated())


def test_it_is_an_error_after_the_first_validation_where_there_was_none_before(trainer):
    with pytest.raises(ConfigError, match="'val/los'; did you mean 'val/loss'"):
        MonitorCheck("val/los").on_validation_end(trainer, Validated())


def test_a_process_that_inherits_the_listening_leaves_signals_to_the_one_that_trains(
    tmp_path, monkeypatch, caplog_ldm
):
    last = LastCheckpoint(tmp_path)
    with signals_restored():
        last._signals.listen()
        with monkeypatch.context() as loader:
            loader.setattr(os, "getpid", lambda: -1)
            signal.raise_signal(signal.SIGINT)
        assert not last._signals._asked[signal.SIGINT]
        assert caplog_ldm.text == ""
        signal.raise_signal(signal.SIGINT)
        assert last._signals._asked[signal.SIGINT]
        assert "Ctrl-C again stops at once" in caplog_ldm.text
