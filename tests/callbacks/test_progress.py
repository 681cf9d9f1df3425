import csv
from types import SimpleNamespace

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from ldm.callbacks.progress import TrainingProgress
from ldm.callbacks.run import SeededSteps
from ldm.callbacks.throughput import Throughput, batch_size


class Learner(pl.LightningModule):
    """One weight, a loss that is shown, and the global generator's numbers."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.drawn = []

    def training_step(self, batch, _):
        self.drawn.append(torch.rand(()).item())
        loss = self.weight.square().sum() + 0 * batch["x"].sum()
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fitted(tmp_path, callback, **options):
    module = Learner()
    loader = DataLoader([{"x": torch.zeros(1)}] * 12, batch_size=2)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=[
            TensorBoardLogger(save_dir=tmp_path, name="", version=""),
            CSVLogger(save_dir=tmp_path, name="csv", version=""),
        ],
        default_root_dir=tmp_path,
        callbacks=[callback],
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        **{"max_epochs": 2, "enable_progress_bar": True} | options,
    )
    trainer.fit(module, loader)
    return module


def test_progress_says_where_it_is_how_fast_and_how_long_it_will_take(tmp_path, caplog_ldm):
    fitted(tmp_path, TrainingProgress(refresh_seconds=1e-9))
    lines = [line for line in caplog_ldm.messages if line.startswith("batch ")]
    assert lines[0].startswith("batch 1/12, 0:0")
    assert lines[-1].startswith("batch 12/12, 0:00 left, ")
    assert all(" left, " in line and " images/s loss=" in line for line in lines)


def test_progress_is_shown_now_and_then_only(tmp_path, caplog_ldm):
    fitted(tmp_path, TrainingProgress(refresh_seconds=1000))
    assert len([line for line in caplog_ldm.messages if line.startswith("batch ")]) == 1


def test_progress_counts_batches_up_to_the_last_step(tmp_path, caplog_ldm):
    options = {"max_steps": 3, "max_epochs": -1, "accumulate_grad_batches": 2}
    fitted(tmp_path, TrainingProgress(), **options)
    lines = [line for line in caplog_ldm.messages if line.startswith("batch ")]
    assert lines[-1].startswith("batch 6/6, ")


def test_a_bar_takes_the_place_of_lines_on_a_terminal(tmp_path, capsys, caplog_ldm):
    progress = TrainingProgress(refresh_seconds=1e-9)
    progress.is_terminal = True
    fitted(tmp_path, progress)
    shown = capsys.readouterr().err
    assert "12/12" in shown
    assert "images/s loss=" in shown
    assert not [line for line in caplog_ldm.messages if line.startswith("batch ")]


def test_throughput_goes_to_all_loggers_every_n_steps(tmp_path):
    fitted(tmp_path, Throughput(every_n_steps=4), enable_progress_bar=False)
    with (tmp_path / "csv" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["images_per_second"]]
    assert [int(row["step"]) for row in rows] == [4, 8, 12]
    assert all(float(row["images_per_second"]) > 0 for row in rows)
    assert all(0.01 < float(row["peak_memory_gib"]) < 1000 for row in rows)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("images_per_second")] == [4, 8, 12]


def test_throughput_is_logged_after_whole_steps_and_not_at_the_start(tmp_path):
    options = {"enable_progress_bar": False, "accumulate_grad_batches": 3}
    fitted(tmp_path, Throughput(every_n_steps=2), **options)
    with (tmp_path / "csv" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["images_per_second"]]
    assert [int(row["step"]) for row in rows] == [2, 4]


def test_throughput_does_not_count_the_time_of_validation(monkeypatch):
    now = iter([100.0, 102.0, 152.0, 154.0])  # begin, pause, go on, end
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    logger, throughput = Numbers(), Throughput(every_n_steps=1)
    trainer = SimpleNamespace(world_size=1, global_step=1, loggers=[logger])
    module = Learner()
    throughput.on_train_epoch_start(trainer, module)
    throughput.on_validation_start(trainer, module)
    throughput.on_validation_end(trainer, module)
    throughput.on_train_batch_end(trainer, module, None, {"x": torch.zeros(8, 1)}, 0)
    assert logger.logged["images_per_second"] == 8 / 4


class Numbers:
    """Keeps what it is given."""

    def log_metrics(self, metrics, step):
        self.logged = metrics


def test_the_size_of_a_batch_is_that_of_its_first_entry():
    assert batch_size({"image": torch.zeros(3, 2), "caption": ["a"] * 3}) == 3
    assert batch_size(torch.zeros(5, 1)) == 5


def test_every_batch_has_numbers_of_its_own_that_a_seed_repeats(tmp_path):
    options = {"enable_progress_bar": False}
    first = fitted(tmp_path / "a", SeededSteps(1), **options).drawn
    torch.rand(7)
    assert fitted(tmp_path / "b", SeededSteps(1), **options).drawn == first
    assert len(set(first)) == 12
    assert not set(first) & set(fitted(tmp_path / "c", SeededSteps(2), **options).drawn)
