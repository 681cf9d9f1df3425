"""Checkpoints that cannot be written, and those that are written while training goes on."""

import errno
import os
import shutil
import subprocess
import threading

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy

from ldm.callbacks.checked import CheckedTrainer
from ldm.callbacks.checkpoint_io import AtomicCheckpointIO
from ldm.callbacks.checkpoints import EXIT_UNSAVED, LastCheckpoint, NotSaved
from ldm.callbacks.signals import signals_restored
from ldm.cli.rundir import RunDir
from ldm.cli.trainer import HISTORY, HISTORY_PARAMS, callback_configs, resume_params
from ldm.config import ConfigError
from ldm.io import atomic
from ldm.io.checkpoint import load_state
from ldm.io.manifest import damage, entries, newest_valid
from tests.io.test_store import checkpoint, step_of
from tests.models.processes import in_two_processes

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB, or a skip where none can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(words, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a tmpfs can be mounted by root only; a raised ENOSPC is tested beside")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def errors(caplog):
    return [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]


def failing(*points, code=errno.ENOSPC):
    """A `reached` that raises what the system says at these points."""

    def reached(point):
        if point in points:
            raise OSError(code, os.strerror(code))

    return reached


def test_a_full_disk_is_told_of_and_the_checkpoint_before_stands(small_disk, caplog_ldm):
    io = AtomicCheckpointIO()
    last = small_disk / "last.ckpt"
    io.save_checkpoint(checkpoint(1), last)
    before = sorted(os.listdir(small_disk))
    big = checkpoint(2) | {"more": torch.zeros(20000)}
    io.save_checkpoint(big, last)
    assert io.failure.errno == errno.ENOSPC
    (said,) = errors(caplog_ldm)
    assert "last.ckpt of step 2: No space left on device" in said
    assert "resume-000000001.ckpt still stands" in said
    assert sorted(os.listdir(small_disk)) == before
    assert step_of(newest_valid(small_disk)) == 1
    io.save_checkpoint(checkpoint(3), last)
    assert io.failure is None
    assert step_of(last) == 3


def test_a_read_only_file_system_is_told_of(small_disk, caplog_ldm):
    io = AtomicCheckpointIO()
    last = small_disk / "last.ckpt"
    io.save_checkpoint(checkpoint(1), last)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    io.save_checkpoint(checkpoint(2), last)
    assert io.failure.errno == errno.EROFS
    assert "Read-only file system" in errors(caplog_ldm)[0]
    assert step_of(last) == 1


@pytest.mark.parametrize("point", ["begin", "middle", "written", "synced", "verified"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_an_error_at_any_point_leaves_the_checkpoint_before(tmp_path, monkeypatch, point, code):
    io = AtomicCheckpointIO()
    io.save_checkpoint(checkpoint(1), tmp_path / "last.ckpt")
    before = sorted(os.listdir(tmp_path))
    with monkeypatch.context() as full:
        full.setattr(atomic, "reached", failing(point, code=code))
        io.save_checkpoint(checkpoint(2), tmp_path / "last.ckpt")
    assert io.failure.errno == code
    assert sorted(os.listdir(tmp_path)) == before
    assert step_of(newest_valid(tmp_path)) == 1


@pytest.mark.parametrize("point", ["begin", "synced"])
def test_a_directory_that_vanishes_is_made_again(tmp_path, monkeypatch, caplog_ldm, point):
    io = AtomicCheckpointIO()
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    io.save_checkpoint(checkpoint(1), last)
    with monkeypatch.context() as vanishing:
        vanishing.setattr(
            atomic, "reached", lambda at: at == point and shutil.rmtree(tmp_path / "run")
        )
        io.save_checkpoint(checkpoint(2), last)
    if point == "synced":
        assert "No such file or directory; there is no earlier one" in errors(caplog_ldm)[0]
        io.save_checkpoint(checkpoint(3), last)
    assert io.failure is None
    assert damage(last) is None
    assert step_of(last) == (3 if point == "synced" else 2)


def test_a_place_that_is_a_file_is_told_of(tmp_path, caplog_ldm):
    (tmp_path / "checkpoints").touch()
    io = AtomicCheckpointIO()
    io.save_checkpoint(checkpoint(1), tmp_path / "checkpoints" / "last.ckpt")
    assert "there is no earlier one, and the next save tries again" in errors(caplog_ldm)[0]


def test_nothing_is_removed_in_favour_of_what_could_not_be_written(tmp_path, monkeypatch):
    io = AtomicCheckpointIO()
    good, better, best = (tmp_path / f"{name}.ckpt" for name in ("good", "better", "best"))
    io.save_checkpoint(checkpoint(1), good)
    with monkeypatch.context() as full:
        full.setattr(atomic, "reached", failing("middle"))
        io.save_checkpoint(checkpoint(2), better)
        io.remove_checkpoint(good)
    assert good.exists()
    assert not better.exists()
    io.save_checkpoint(checkpoint(3), best)
    assert not good.exists()


@pytest.fixture
def gate(monkeypatch):
    """Holds every save at its beginning until it is set."""
    gate = threading.Event()

    def held(point):
        if point == "begin":
            assert gate.wait(30)

    monkeypatch.setattr(atomic, "reached", held)
    yield gate
    gate.set()


def test_training_goes_on_while_a_checkpoint_is_written_and_changes_nothing_in_it(tmp_path, gate):
    io, last = AtomicCheckpointIO(in_background=True), tmp_path / "last.ckpt"
    given = checkpoint(1)
    expected = given["state_dict"]["p0"].clone()
    io.save_checkpoint(given, last)
    given["state_dict"]["p0"].zero_()
    io.check()
    assert not last.exists()
    gate.set()
    io.teardown()
    assert torch.equal(torch.load(last, weights_only=True)["state_dict"]["p0"], expected)


def test_a_second_save_waits_for_the_first_and_removals_keep_their_order(tmp_path, gate):
    io = AtomicCheckpointIO(in_background=True)
    first, second = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    io.save_checkpoint(checkpoint(1), first)
    threading.Timer(0.2, gate.set).start()
    io.save_checkpoint(checkpoint(2), second)
    assert first.exists()
    io.remove_checkpoint(first)
    io.wait()
    assert (first.exists(), second.exists()) == (False, True)


def test_the_file_is_the_same_either_way(tmp_path):
    for is_behind in (True, False):
        io = AtomicCheckpointIO(in_background=is_behind)
        io.save_checkpoint(checkpoint(1), tmp_path / f"{is_behind}.ckpt")
        io.teardown()
    assert (tmp_path / "True.ckpt").read_bytes() == (tmp_path / "False.ckpt").read_bytes()


def test_what_fails_in_the_background_is_not_silent(tmp_path, monkeypatch, caplog_ldm):
    io = AtomicCheckpointIO(in_background=True)
    with monkeypatch.context() as full:
        full.setattr(atomic, "reached", failing("middle"))
        io.save_checkpoint(checkpoint(1), tmp_path / "last.ckpt")
        io.wait()
    assert "No space left on device" in errors(caplog_ldm)[0]
    unsaveable = checkpoint(2) | {"x": (each for each in ())}
    with pytest.raises(TypeError, match="generator"):
        io.save_checkpoint(unsaveable, tmp_path / "last.ckpt")


class Line(pl.LightningModule):
    """A weight that is never changed."""

    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(1, 1)
        self.first_stage_model = torch.nn.Linear(2, 2).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        return self.line(batch).mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", -float(self.global_step))

    def configure_optimizers(self):
        return torch.optim.SGD(self.line.parameters(), lr=0.0)


class At(pl.Callback):
    """Does something at the beginning of a step."""

    def __init__(self, **steps):
        self.steps = {int(name.removeprefix("step")): act for name, act in steps.items()}

    def on_train_batch_start(self, trainer, *_):
        self.steps.get(trainer.global_step, int)()


def fit(directory, *callbacks, **options):
    trainer = CheckedTrainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        num_sanity_val_steps=0,
        enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        default_root_dir=directory,
        **{"max_steps": 6, "plugins": [AtomicCheckpointIO()], **options},
    )
    data = torch.utils.data.DataLoader(torch.ones(8, 1))
    with signals_restored():
        trainer.fit(Line(), data, data)
    return trainer


def test_training_goes_on_over_a_full_disk(tmp_path, monkeypatch, caplog_ldm):
    last = LastCheckpoint(tmp_path, every_n_steps=2)
    disk = At(
        step3=lambda: monkeypatch.setattr(atomic, "reached", failing("middle")),
        step5=monkeypatch.undo,
    )
    fit(tmp_path, last, disk)
    (said,) = errors(caplog_ldm)
    assert "last.ckpt of step 4: No space left on device" in said
    assert said.endswith("resume-000000002.ckpt still stands, and step 6 tries again")
    assert step_of(tmp_path / "last.ckpt") == 6


@pytest.mark.parametrize("in_background", [False, True])
def test_an_end_that_cannot_be_saved_ends_with_a_code_of_its_own(
    tmp_path, monkeypatch, caplog_ldm, in_background
):
    io = AtomicCheckpointIO(in_background=in_background)
    last = LastCheckpoint(tmp_path, every_n_steps=2)

    def fill():
        io.wait()  # for the save of step 4
        monkeypatch.setattr(atomic, "reached", failing("middle"))

    with pytest.raises(NotSaved) as ended:
        fit(tmp_path, last, At(step5=fill), plugins=[io])
    assert ended.value.code == EXIT_UNSAVED == 74
    assert "the state of step 6 is lost" in errors(caplog_ldm)[-1]
    assert step_of(newest_valid(tmp_path)) == 4


def interrupted():
    raise RuntimeError("the callback's own error")


@pytest.mark.parametrize("in_background", [False, True])
def test_what_is_pending_is_finished_when_an_exception_ends_training(tmp_path, in_background):
    io = AtomicCheckpointIO(in_background=in_background)
    last = LastCheckpoint(tmp_path, every_n_steps=2)
    with pytest.raises(RuntimeError, match="the callback's own error"):
        fit(tmp_path, last, At(step3=interrupted), plugins=[io])
    assert step_of(newest_valid(tmp_path)) == 3
    assert io._writer is None


def test_the_best_the_last_and_the_first_stage_are_in_one_manifest(tmp_path):
    best = ModelCheckpoint(tmp_path, filename="{step}", monitor="val/loss", save_top_k=2)
    fit(tmp_path, best, LastCheckpoint(tmp_path), val_check_interval=2)
    (stage,) = tmp_path.glob("first_stage-*.safetensors")
    files = [
        "last.ckpt",
        "manifest.json",
        "resume-000000004.ckpt",
        "resume-000000006.ckpt",  # after the validation of the last step
        "step=4.ckpt",
        "step=6.ckpt",
    ]
    assert sorted(os.listdir(tmp_path)) == [stage.name, *files]
    assert all(damage(path) is None for path in tmp_path.glob("*.ckpt"))
    assert newest_valid(tmp_path) == tmp_path / "last.ckpt"


def test_a_first_stage_stays_in_the_checkpoints_on_demand(tmp_path):
    fit(tmp_path, LastCheckpoint(tmp_path, embed_first_stage=True))
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert "first_stage_model.weight" in state
    assert not list(tmp_path.glob("first_stage-*"))


def test_the_history_is_bounded_and_in_a_manifest_of_its_own(tmp_path):
    params = {**HISTORY_PARAMS, "every_n_train_steps": 1, "save_top_k": 2}
    fit(tmp_path, ModelCheckpoint(tmp_path / "history", **params), LastCheckpoint(tmp_path))
    kept = ["epoch=000000-step=000000005.ckpt", "epoch=000000-step=000000006.ckpt"]
    assert sorted(path.name for path in (tmp_path / "history").glob("*.ckpt")) == kept
    assert sorted(entries(tmp_path / "history")) == kept
    for name in kept:
        assert "first_stage_model.weight" in load_state(tmp_path / "history" / name)


@pytest.mark.parametrize(
    ("given", "top", "mode"),
    [
        ({}, 10, "max"),
        ({"save_top_k": -1}, -1, "max"),  # published
        ({"save_top_k": 4, "every_n_train_steps": 5000}, 4, "max"),
        ({"monitor": "val/loss"}, 10, "min"),
    ],
)
def test_the_bound_of_the_history_is_a_parameter(tmp_path, given, top, mode):
    run = RunDir(tmp_path, "now")
    params = callback_configs({HISTORY: {"params": given}}, run)[HISTORY]["params"]
    assert (params["save_top_k"], params["mode"]) == (top, mode)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("every_n_train_steps", 0),
        ("resume_points", 0),
        ("resume_points", True),
        ("embed_first_stage", "yes"),
        ("in_background", 1),
    ],
)
def test_parameters_out_of_range_are_named(name, value):
    with pytest.raises(ConfigError, match=f"modelcheckpoint.params.{name}: {value!r}; expected"):
        resume_params({name: value})


def unsaved(rank, world, directory):
    """A full disk, of which the first process alone hears."""
    torch.set_num_threads(1)
    atomic.reached = failing("middle")
    strategy = DDPStrategy(broadcast_buffers=False)
    last = LastCheckpoint(directory / "checkpoints", every_n_steps=2)
    with pytest.raises(NotSaved):
        fit(directory, last, strategy=strategy, devices=world)
    (directory / f"ended-{rank}").touch()


@pytest.mark.slow
def test_all_processes_hear_of_it_at_the_end(tmp_path):
    in_two_processes(unsaved, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["checkpoints", "ended-0", "ended-1"]
