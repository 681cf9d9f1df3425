import re
from contextlib import ExitStack

import pytest

from ldm.cli.arguments import parse
from ldm.cli.restarts import run_dir
from ldm.cli.rundir import (
    RunDir,
    checkpoint_of,
    new_run,
    resume_run,
    run_of,
    taken_back_on_error,
)
from ldm.cli.settings import DEFAULT_SEED, settings
from ldm.cli.trainer import trainer_options
from ldm.config import ConfigError
from ldm.io import store
from tests.cli.runs import first_stage, write


@pytest.fixture
def read(tmp_path):
    """The settings of a small run with more words on its command line."""

    def read(*words, **blocks):
        path = write(tmp_path / "config.yaml", first_stage() | blocks)
        return settings(parse(["-b", path, *words]), RunDir(tmp_path / "run", "now"))

    return read


def test_the_seed_is_the_flag_or_the_configuration_or_23(read):
    assert read()["data"]["params"]["seed"] == DEFAULT_SEED == 23
    assert read("data.params.seed=5")["data"]["params"]["seed"] == 5
    assert read("data.params.seed=5", "-s", "0")["data"]["params"]["seed"] == 0


def test_flags_of_the_trainer_win_over_the_configuration(read):
    trainer = read("--max_steps", "3", "lightning.trainer.max_steps=4", "--gpus", "0,")
    assert trainer["lightning"]["trainer"]["max_steps"] == 3
    assert trainer["lightning"]["trainer"]["gpus"] == "0,"
    assert trainer["lightning"]["trainer"]["precision"] == "32-true"


@pytest.mark.parametrize(
    ("recorded", "words", "expected"),
    [
        ({"gpus": "0,"}, ["--accelerator", "cpu", "--devices", "2"], ("cpu", 2)),
        ({"gpus": [0, 1]}, ["--accelerator", "cpu"], ("cpu", 1)),
        ({"gpus": "cpu"}, ["--devices", "2"], ("cpu", 2)),
        ({"gpus": "cpu", "devices": 3}, ["--accelerator", "cpu"], ("cpu", 1)),
        ({"gpus": "0,"}, ["lightning.trainer.accelerator=cpu"], ("cpu", 1)),
        ({"accelerator": "gpu", "devices": 2}, ["--gpus", "cpu"], ("cpu", 1)),
        ({"accelerator": "cpu", "devices": 4}, ["--devices", "2"], ("cpu", 2)),
    ],
)
def test_devices_of_the_command_line_replace_those_of_the_run(tmp_path, recorded, words, expected):
    run = RunDir(tmp_path / "run", "2")
    run.configs.mkdir(parents=True)
    write(run.configs / "1-project.yaml", {key: first_stage()[key] for key in ("model", "data")})
    write(run.configs / "1-lightning.yaml", {"lightning": {"trainer": recorded}})
    told = settings(parse(["-r", str(run.path), *words]), run)
    assert devices(told) == expected
    # and the next start, which reads the records of both, is told the same
    write(run.configs / "2-lightning.yaml", {"lightning": told["lightning"]})
    assert devices(settings(parse(["-r", str(run.path)]), run)) == expected


def devices(config):
    options = trainer_options(config["lightning"]["trainer"])
    return options["accelerator"], options["devices"]


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({"max_time": 3600}, "max_time: 3600; expected a duration"),
        ({"max_time": "1h", "enable_checkpointing": False}, "max_time: ends in a checkpoint"),
    ],
)
def test_a_time_limit_is_checked_before_anything_is_built(block, expected):
    with pytest.raises(ConfigError, match=expected):
        trainer_options(block)
    assert trainer_options({"max_time": "1h"})["max_epochs"] == 1000  # a start ends, the run not


def test_a_configuration_without_a_lightning_block_gets_one(read):
    assert read(lightning=None)["lightning"] == {"trainer": {}}


def test_a_rate_that_is_not_scaled_is_recorded_as_such(read):
    model = first_stage()["model"]
    rate = model.pop("learning_rate")
    model["base_learning_rate"] = rate
    assert "base_learning_rate" in read(model=model)["model"]
    unscaled = read("--scale_lr", "false", model=model)["model"]
    assert unscaled["learning_rate"] == rate
    assert "base_learning_rate" not in unscaled


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["model.base_learning_rate=1.0"], "base_learning_rate and learning_rate"),
        (["data=null"], "no `data:` block"),
        (["lightning.trainer=3"], "lightning.trainer: expected a mapping, got 3"),
        (["data.params=3"], "data.params: expected a mapping, got 3"),
    ],
)
def test_blocks_that_are_missing_or_of_another_kind_are_named(read, words, expected):
    with pytest.raises(ConfigError, match=re.escape(expected)):
        read(*words)


def test_a_new_run_is_named_after_its_time_its_configuration_and_a_postfix(tmp_path):
    run = new_run(str(tmp_path), None, ["configs/ffhq.yaml", "more.yaml"], "_b")
    assert run.path == tmp_path / f"{run.now}_ffhq_b"
    assert new_run(str(tmp_path), "mine", ["configs/ffhq.yaml"], "").path.name.endswith("_mine")
    assert not run.path.exists()


def test_runs_of_the_same_second_have_directories_of_their_own(tmp_path):
    paths = set()
    for _ in range(3):
        run = new_run(str(tmp_path), "x", [], "")
        run.path.mkdir()
        paths.add(run.path)
    assert len(paths) == 3


@pytest.fixture
def run(tmp_path):
    """A run directory with configurations of two starts and checkpoints."""
    run = RunDir(tmp_path / "run", "1")
    for directory in (run.checkpoints, run.configs):
        directory.mkdir(parents=True)
    for name in ("1-project", "2-project", "1-lightning", "2-lightning", "2-environment"):
        (run.configs / f"{name}.yaml").write_text("{}")
    for step, name in ((300, "epoch=000001-step=000000400"), (400, "last")):
        checkpoint = {"global_step": step, "optimizer_states": []}
        store.save(checkpoint, run.checkpoints / f"{name}.ckpt")
    return run


def test_a_run_is_found_by_its_directory_or_a_checkpoint(run):
    assert resume_run(str(run.path)).resume_from == run.checkpoints / "last.ckpt"
    best = run.checkpoints / "epoch=000001-step=000000400.ckpt"
    assert resume_run(str(best)).resume_from == best
    assert resume_run(str(best)).path == run.path


def test_a_checkpoint_deep_in_a_run_belongs_to_it(run):
    deep = run.checkpoints / "trainstep_checkpoints" / "epoch=000000-step=000010000.ckpt"
    store.save({"optimizer_states": []}, deep)
    resumed = resume_run(str(deep))
    assert (resumed.path, resumed.resume_from) == (run.path, deep)
    assert run_of(str(run.path)) == run.path


def test_a_checkpoint_outside_a_run_is_none_to_go_on_with(tmp_path):
    lone = tmp_path / "backups" / "model.ckpt"
    store.save({"optimizer_states": []}, lone)
    with pytest.raises(ConfigError, match=r"in no RUN/checkpoints/; --resume_from_checkpoint goes"):
        resume_run(str(lone))
    assert checkpoint_of(str(lone)) == lone
    assert run_of(str(lone)) is None


def test_a_start_from_a_checkpoint_is_a_new_run(run, tmp_path):
    words = ["--resume_from_checkpoint", str(run.path), "-l", str(tmp_path / "logs"), "-n", "x"]
    with ExitStack() as holding:
        start = run_dir(parse(words), holding)
    assert start.path == tmp_path / "logs" / f"{start.now}_x"
    assert start.resume_from == run.checkpoints / "last.ckpt"


def test_configurations_of_a_run_are_read_oldest_first(run):
    names = [path.stem for path in resume_run(str(run.path)).config_files()]
    assert names == ["1-project", "2-project", "1-lightning", "2-lightning"]


def test_a_run_resumed_in_the_second_of_its_start_keeps_its_records(run):
    first = resume_run(str(run.path))
    for kind in ("project", "lightning"):
        (run.configs / f"{first.now}-{kind}.yaml").write_text("{}")
    second = resume_run(str(run.path))
    assert second.now != first.now
    (run.configs / f"{second.now}-project.yaml").write_text("{}")
    names = [path.stem for path in second.config_files()]
    assert names.index(f"{first.now}-project") < names.index(f"{second.now}-project")


def test_what_is_no_run_is_explained(run):
    with pytest.raises(ConfigError, match=r"did you mean .*run"):
        resume_run(str(run.path.with_name("rum")))
    with pytest.raises(ConfigError, match=r"expected a run directory or a \.ckpt"):
        resume_run(str(run.configs / "1-project.yaml"))
    for checkpoint in run.checkpoints.iterdir():
        checkpoint.unlink()
    with pytest.raises(ConfigError, match=r"no checkpoints/\*\.ckpt that training can go on from"):
        resume_run(str(run.path))


def test_drawing_from_a_run_without_a_last_checkpoint_names_others(run):
    (run.checkpoints / "last.ckpt").unlink()
    names = r"epoch=000001-step=000000400\.ckpt, resume-000000400\.ckpt"
    with pytest.raises(ConfigError, match=rf"no checkpoints/last\.ckpt .* {names}"):
        checkpoint_of(str(run.path))


def test_the_directory_of_a_start_that_failed_is_taken_back(tmp_path):
    fail(RunDir(tmp_path / "logs" / "run", "now"), "configs/a.yaml")
    assert not (tmp_path / "logs").exists()


def test_the_directory_of_a_run_with_a_checkpoint_stays(tmp_path):
    fail(RunDir(tmp_path / "logs" / "run", "now"), "checkpoints/last.ckpt")
    assert (tmp_path / "logs" / "run" / "checkpoints" / "last.ckpt").exists()


def test_another_run_in_the_same_place_stays(tmp_path):
    fail(RunDir(tmp_path / "logs" / "run", "now"), "../other/a.yaml")
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["other"]


def fail(run, file):
    """Write a file, then fail as a start does."""

    def start():
        with taken_back_on_error(run):
            run.path.mkdir(parents=True)
            path = run.path / file
            path.parent.mkdir(parents=True)
            path.touch()
            raise ConfigError("too late")

    with pytest.raises(ConfigError, match="too late"):
        start()


def test_a_directory_that_was_there_before_is_never_taken_back(run):
    for checkpoint in run.checkpoints.iterdir():
        checkpoint.unlink()
    with pytest.raises(ConfigError), taken_back_on_error(run):
        raise ConfigError("late")
    assert run.configs.exists()
