import csv
import logging
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from pytorch_lightning.callbacks import DeviceStatsMonitor, LearningRateMonitor
from pytorch_lightning.strategies import DDPStrategy

from ldm.callbacks.images import ImageLogger
from ldm.cli.rundir import RunDir
from ldm.cli.train import main, train
from ldm.cli.trainer import _callbacks, make_quiet, trainer_options
from ldm.config import ConfigError
from tests.cli.runs import first_stage, only_run, run_main, second_stage, unconditional, write


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def started(config, *words):
    return train(["-b", write_here(config), "-t", *words])


def write_here(config, name="config.yaml"):
    return write(Path(name), config)


def last(run):
    return torch.load(run.checkpoints / "last.ckpt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("config", [first_stage, second_stage])
def test_a_run_leaves_configurations_checkpoints_metrics_and_pictures(place, config):
    run = started(config(), "-n", "mine", "-f", "_b", "--max_steps", "8")
    assert only_run(place / "logs") == place / run.path
    assert run.path.name == f"{run.now}_mine_b"
    kinds = ("environment", "lightning", "project")
    assert sorted(p.name for p in run.configs.iterdir()) == [f"{run.now}-{k}.yaml" for k in kinds]
    kept = ["epoch=000000-step=000000006.ckpt", "last.ckpt", "manifest.json"]
    kept += ["resume-000000006.ckpt", "resume-000000008.ckpt"]  # after validation, and at the end
    stages = sorted(p.name for p in run.checkpoints.glob("first_stage-*"))
    assert len(stages) == (config is second_stage)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == sorted([*kept, *stages])
    assert list(run.path.glob("events.out.tfevents.*"))
    assert list((run.path / "images" / "train").glob("inputs_gs-000004_e-000000_b-000003.png"))
    assert list((run.path / "images" / "val").glob("*.png"))
    rows = metrics(run)
    assert any(row["lr-Adam" if config is first_stage else "lr-AdamW"] for row in rows)
    monitor = "val/rec_loss" if config is first_stage else "val/loss_simple_ema"
    assert len([row for row in rows if row[monitor]]) == 1


def metrics(run):
    (path,) = run.path.glob("metrics/*/metrics.csv")
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_record_of_a_run_says_what_it_was_told(place):
    config = first_stage()
    config["model"]["base_learning_rate"] = config["model"].pop("learning_rate") / 100
    run = started(
        config, "--max_steps", "2", "-s", "5", "--scale_lr", "false", "data.params.batch_size=2"
    )
    project, lightning = (
        yaml.safe_load((run.configs / f"{run.now}-{kind}.yaml").read_text())
        for kind in ("project", "lightning")
    )
    assert project["data"]["params"]["seed"] == 5
    assert project["data"]["params"]["batch_size"] == 2
    assert project["model"]["learning_rate"] == 1e-5
    assert lightning["lightning"]["trainer"]["max_steps"] == 2
    assert last(run)["config"] == (run.configs / f"{run.now}-project.yaml").read_text()


@pytest.mark.slow
def test_the_learning_rate_is_shown_as_an_equation(place, caplog_ldm):
    config = first_stage()
    config["model"]["base_learning_rate"] = config["model"].pop("learning_rate") / 100
    run = started(config, "--max_steps", "2", "--accumulate_grad_batches", "2")
    assert (
        "lr = 2 (accumulate_grad_batches) x 1 (devices) x 4 (batch_size) x 1e-05 "
        "(base_learning_rate) = 8e-05"
    ) in caplog_ldm.text
    assert last(run)["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(8e-5)
    run = started(config, "--max_steps", "2", "--scale_lr", "false")
    assert last(run)["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(1e-5)


@pytest.mark.slow
def test_a_rate_far_above_what_adam_takes_gets_a_warning(place, caplog_ldm):
    config = first_stage()
    config["model"]["base_learning_rate"] = config["model"].pop("learning_rate")
    started(config, "--max_steps", "1")
    assert "--scale_lr false" in caplog_ldm.text


@pytest.mark.slow
@pytest.mark.parametrize("config", [first_stage, unconditional])
def test_the_test_set_is_run_unless_it_is_not_wanted(place, caplog_ldm, config):
    config = config()
    config["data"]["params"]["test"] = config["data"]["params"]["validation"]
    path = write_here(config)
    run = train(["-b", path, "-t", "--no-test", "--max_steps", "2"])
    assert "test/" not in caplog_ldm.text
    train(["-r", str(run.path), "--no-test"])
    assert "test/" not in caplog_ldm.text
    train(["-r", str(run.path)])
    alone = reported(caplog_ldm)
    assert alone
    caplog_ldm.clear()
    train(["-b", path, "-t", "--max_steps", "2"])
    assert alone.items() <= reported(caplog_ldm).items()


def reported(caplog):
    return dict(text.split(" = ") for text in caplog.messages if text.startswith("test/"))


@pytest.mark.slow
def test_a_checkpoint_is_gone_on_with_in_a_new_directory(place):
    first = started(first_stage(), "--max_steps", "2")
    path = str(first.checkpoints / "last.ckpt")
    second = started(first_stage(), "--max_steps", "4", "--resume_from_checkpoint", path, "-n", "x")
    assert second.path != first.path
    assert (last(first)["global_step"], last(second)["global_step"]) == (2, 4)


@pytest.mark.slow
def test_a_finished_run_that_is_resumed_says_so(place, caplog_ldm):
    run = started(first_stage(), "--max_steps", "2")
    assert "nothing was left" not in caplog_ldm.text
    train(["-r", str(run.path), "-t"])
    assert "nothing was left to train" in caplog_ldm.text
    assert last(run)["global_step"] == 2


@pytest.mark.slow
def test_a_trial_names_no_directory(place, caplog_ldm):
    run = started(first_stage(), "--fast_dev_run")
    assert not run.path.exists()
    assert str(run.path) not in caplog_ldm.text
    assert "1 x cpu, precision 32-true" in caplog_ldm.text


@pytest.mark.slow
def test_a_debugged_run_goes_to_a_place_of_its_own_and_stops_in_the_debugger(place, monkeypatch):
    stopped = []
    monkeypatch.setattr("pdb.post_mortem", lambda: stopped.append(True))
    monkeypatch.setenv("LDM_TRUST", "tests")
    config = first_stage()
    config["lightning"]["callbacks"]["fault"] = {
        "target": "tests.cli.interrupting.RaiseAt",
        "params": {"batch": 2},
    }
    with pytest.raises(RuntimeError, match="the callback's own error"):
        started(config, "-d")
    assert stopped
    assert only_run(place / "logs" / "debug_runs")


@pytest.mark.slow
def test_a_quick_trial_writes_nothing(place):
    started(first_stage(), "--fast_dev_run", "2")
    assert not (place / "logs").exists()


@pytest.mark.slow
def test_a_default_callback_can_be_adjusted_or_left_out(place):
    words = [
        "lightning.callbacks.image_logger=null",
        "lightning.callbacks.throughput.params.every_n_steps=1",
    ]
    run = started(first_stage(), "--max_steps", "4", *words)
    assert not (run.path / "images").exists()
    assert sum(bool(row["images_per_second"]) for row in metrics(run)) == 4


def made(callbacks, tmp_path):
    """The callbacks that a `lightning.callbacks` block makes."""
    return _callbacks(callbacks, RunDir(tmp_path / "run", "now"), plain=False)


def test_another_class_in_a_default_callbacks_place_has_its_own_parameters_alone(tmp_path):
    other = {"target": "pytorch_lightning.callbacks.DeviceStatsMonitor"}
    callbacks = made({"learning_rate_logger": other}, tmp_path)
    assert any(isinstance(each, DeviceStatsMonitor) for each in callbacks)
    assert not any(isinstance(each, LearningRateMonitor) for each in callbacks)


@pytest.mark.parametrize("name", ["main.ImageLogger", "ldm.callbacks.images.ImageLogger"])
def test_a_default_callback_that_is_named_keeps_its_defaults(tmp_path, name):
    given = {"target": name, "params": {"max_images": 3}}
    (logger,) = (
        each for each in made({"image_logger": given}, tmp_path) if isinstance(each, ImageLogger)
    )
    assert logger.max_images == 3
    assert logger.directory == str(tmp_path / "run" / "images")


@pytest.mark.slow
def test_the_published_history_of_weights_is_kept_on_demand(place):
    words = ["lightning.callbacks.metrics_over_trainsteps_checkpoint.params.every_n_train_steps=2"]
    run = started(first_stage(), "--max_steps", "4", *words)
    kept = sorted((run.checkpoints / "trainstep_checkpoints").glob("*.ckpt"))
    names = ["epoch=000000-step=000000002.ckpt", "epoch=000000-step=000000004.ckpt"]
    assert [path.name for path in kept] == names
    assert "optimizer_states" not in torch.load(kept[0], weights_only=True)


@pytest.mark.slow
def test_a_logger_of_the_configuration_takes_tensorboards_place(place):
    config = first_stage()
    config["lightning"]["logger"] = {
        "target": "pytorch_lightning.loggers.CSVLogger",
        "params": {"name": "own"},
    }
    run = started(config, "--max_steps", "2")
    assert not list(run.path.glob("events*"))
    assert list(run.path.glob("own/*/metrics.csv"))
    assert metrics(run)


@pytest.mark.slow
def test_the_default_logger_can_be_adjusted(place):
    run = started(first_stage(), "--max_steps", "1", "lightning.logger.params.name=curves")
    assert list((run.path / "curves").glob("events*"))


@pytest.mark.slow
def test_the_terminal_shows_our_words_only(place):
    write_here(second_stage())
    words = ["--num_sanity_val_steps", "2", "--max_steps", "3"]
    code, said = run_main(["-b", "config.yaml", "-t", *words], place)
    assert code == 0
    starts = (
        "lr = ",
        "1 x cpu",
        "run directory: ",
        "latents have standard deviation",
        "batch 3/3, 0:00 left",
    )
    lines = said.splitlines()
    assert len(lines) == len(starts) + 1, said
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=False)), said
    assert "images/s" in lines[4]
    assert lines[5].startswith("trained to step 3: logs/")


@pytest.mark.slow
def test_the_first_stages_checkpoint_is_named_once(place, caplog_ldm):
    first = started(first_stage(), "--max_steps", "1", "-n", "first")
    path = str(first.checkpoints / "last.ckpt")
    started(second_stage(path), "--max_steps", "1", "-n", "second")
    assert caplog_ldm.text.count(f"first stage from {path}") == 1


@pytest.mark.slow
@pytest.mark.parametrize("config", [first_stage, second_stage])
def test_two_processes_share_one_run(place, config):
    write_here(config())
    words = ["--accelerator", "cpu", "--devices", "2", "--max_steps", "2"]
    words += ["--val_check_interval", "1"]
    code, said = run_main(["-b", "config.yaml", "-t", *words], place, timeout=300)
    assert code == 0, said
    run = only_run(place / "logs")
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert checkpoint["DataModuleFromConfig"] == {"epoch": 0, "samples": 16}
    assert said.count("run directory") == 1
    assert ".py:" not in said  # no warning


@pytest.mark.slow
def test_main_ends_with_zero_when_all_went_well(place):
    assert main(["-b", write_here(first_stage()), "-t", "--max_steps", "1"]) == 0


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({"gpus": "cpu"}, ("cpu", 1)),
        ({"gpus": 0}, ("cpu", 1)),
        ({"accelerator": "cpu", "devices": 2}, ("cpu", 2)),
        ({}, ("auto", 1)),
    ],
)
def test_devices_come_from_gpus_or_from_lightnings_own_arguments(block, expected):
    options = trainer_options(block)
    assert (options["accelerator"], options["devices"]) == expected


@pytest.mark.parametrize(
    ("block", "found", "expected"),
    [
        ({"gpus": "0,1"}, 2, [0, 1]),
        ({"gpus": [0, 1]}, 2, [0, 1]),
        ({"gpus": [1]}, 2, [1]),
        ({"gpus": 2}, 2, 2),
        ({"gpus": "-1"}, 3, -1),
    ],
)
def test_gpus_that_are_there_are_taken(monkeypatch, block, found, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    options = trainer_options({**block, "precision": "32-true"})
    assert (options["accelerator"], options["devices"]) == ("gpu", expected)
    assert options["benchmark"]


@pytest.mark.parametrize(
    ("gpus", "found", "expected"),
    [("0,1", 0, "no CUDA device"), ("0,2", 2, "2 CUDA devices, 0 to 1"), ("-1", 0, "no CUDA")],
)
def test_gpus_that_are_not_there_are_an_error(monkeypatch, gpus, found, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    with pytest.raises(ConfigError, match=expected):
        trainer_options({"gpus": gpus})


def test_a_checkpoint_to_resume_from_is_named_on_the_command_line():
    name = "resume_from_checkpoint"
    assert name not in trainer_options({"accelerator": "cpu", name: None})
    with pytest.raises(ConfigError, match=rf"trainer\.{name}: 'a\.ckpt'.* --{name} CKPT"):
        trainer_options({name: "a.ckpt"})


@pytest.mark.parametrize("name", ["logger", "callbacks"])
def test_an_argument_that_has_another_place_is_sent_there(name):
    with pytest.raises(ConfigError, match=rf"trainer\.{name}: .* give lightning\.{name}"):
        trainer_options({name: False})


@pytest.mark.parametrize("name", ["max_steps", "max_epochs", "limit_train_batches"])
def test_a_training_of_nothing_is_an_error(name):
    with pytest.raises(ConfigError, match=rf"trainer\.{name}: 0; nothing"):
        trainer_options({"accelerator": "cpu", name: 0})


@pytest.mark.parametrize(("steps", "expected"), [(None, 50), (-1, 50), (7, 7), (1000, 50)])
def test_a_short_run_is_logged_at_its_end(steps, expected):
    block = {} if steps is None else {"max_steps": steps}
    assert trainer_options({"accelerator": "cpu", **block})["log_every_n_steps"] == expected


def test_only_several_processes_are_made_to_agree_on_gradients(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for block in ({"gpus": "1,"}, {"accelerator": "cpu"}):
        assert "strategy" not in trainer_options({**block, "precision": "32-true"})
    for block in ({"gpus": "0,1"}, {"gpus": 2}, {"gpus": "0,", "num_nodes": 2}):
        options = trainer_options({**block, "precision": "32-true"})
        assert isinstance(options["strategy"], DDPStrategy)


@pytest.mark.parametrize("end", [{"max_steps": 5}, {"max_epochs": 5}])
def test_training_without_an_end_lasts_a_thousand_epochs(end):
    assert trainer_options({"accelerator": "cpu"})["max_epochs"] == 1000
    assert trainer_options({"accelerator": "cpu", **end}).get("max_epochs") in (None, 5)


def test_quiet_means_lightnings_greetings_and_not_its_warnings():
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        make_quiet()
        warnings.warn("The 'train_dataloader' does not have many workers which may", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert [str(each.message) for each in heard] == ["something else"]
    assert not logging.getLogger("pytorch_lightning.utilities.rank_zero").isEnabledFor(logging.INFO)
