import re
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

from ldm.cli import rundir
from ldm.cli.arguments import parse
from ldm.cli.locks import held
from ldm.cli.restarts import require_same_model, run_dir, set_aside, shared_directory
from ldm.cli.rundir import RunDir, newest_run, resumable, resume_run
from ldm.config import ConfigError
from ldm.io import store
from tests.cli.runs import first_stage, write


@pytest.fixture
def logdir(tmp_path):
    return tmp_path / "logs"


def saved(run, *steps):
    """A run's directory with checkpoints of these steps, as training writes them."""
    for step in steps:
        checkpoint = {"global_step": step, "epoch": 0, "optimizer_states": [], "state_dict": {}}
        store.save(checkpoint, run / "checkpoints" / "last.ckpt")
    run.mkdir(parents=True, exist_ok=True)
    return run


def damage(path):
    """Turn one bit in the middle of a file, by whatever name it is known."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def started(logdir, *words):
    """The run of a start that only checks."""
    with ExitStack() as holding:
        return run_dir(parse(["-l", str(logdir), *words]), holding)


def test_a_run_goes_on_from_its_newest_checkpoint_and_says_so(logdir, caplog_ldm):
    run = saved(logdir / "1_x", 4, 8)
    assert resume_run(str(run)).resume_from == run / "checkpoints" / "last.ckpt"
    assert f"{run}: going on from checkpoints/last.ckpt, its newest" in caplog_ldm.text


def test_a_damaged_checkpoint_is_named_and_passed_by(logdir, caplog_ldm):
    run = saved(logdir / "1_x", 4, 8)
    damage(run / "checkpoints" / "last.ckpt")
    assert resume_run(str(run)).resume_from == run / "checkpoints" / "resume-000000004.ckpt"
    assert "is passed by" in caplog_ldm.text
    assert "resume-000000004.ckpt, the newest of it that is valid" in caplog_ldm.text


def test_a_damaged_checkpoint_that_is_named_is_one_error_with_the_newest_valid_one(logdir):
    run = saved(logdir / "1_x", 4, 8)
    last = run / "checkpoints" / "last.ckpt"
    damage(last)
    newest = re.escape(str(run / "checkpoints" / "resume-000000004.ckpt"))
    with pytest.raises(ConfigError, match=f"last.ckpt: damaged, .*run is {newest}: give that"):
        resume_run(str(last))
    damage(run / "checkpoints" / "resume-000000004.ckpt")
    with pytest.raises(ConfigError, match="no other checkpoint of its run is valid"):
        resumable(str(last))


def test_a_run_without_a_valid_checkpoint_is_an_error(logdir):
    run = saved(logdir / "1_x", 4)
    damage(run / "checkpoints" / "last.ckpt")
    with pytest.raises(ConfigError, match=r"none of last\.ckpt, resume-.*\.ckpt is a checkpoint"):
        resume_run(str(run))
    with pytest.raises(ConfigError, match=r"has no checkpoints/\*\.ckpt that training can go on"):
        resume_run(str(saved(logdir / "2_x")))


def test_the_first_start_of_a_name_is_a_new_run(logdir, caplog_ldm):
    run = newest_run(str(logdir), "mine", "_b")
    assert run.path == logdir / f"{run.now}_mine_b"
    assert run.resume_from is None
    assert not logdir.exists()
    assert f"no run in {logdir} is called mine_b: starting it" in caplog_ldm.text


def test_a_later_start_goes_on_with_the_newest_run_of_the_name(logdir):
    moments = ["2026-01-02T00-00-00", "2026-01-10T00-00-00", "2026-01-10T00-00-00-2"]
    runs = [saved(logdir / f"{moment}_mine", 4) for moment in moments]
    saved(logdir / "2026-01-11T00-00-00_mine_b", 4)
    saved(logdir / "2026-01-12T00-00-00_not_mine", 4)
    saved(logdir / "2026_mine", 4)
    assert newest_run(str(logdir), "mine", "").path == runs[-1]
    saved(logdir / "2026-01-10T00-00-00-10_mine", 4)  # after the 2nd of that second
    assert newest_run(str(logdir), "mine", "").path.name == "2026-01-10T00-00-00-10_mine"
    assert newest_run(str(logdir), "mine", "_b").resume_from is not None


def test_a_run_without_a_checkpoint_is_passed_by_for_one_with(logdir, caplog_ldm):
    older = saved(logdir / "2026-01-02T00-00-00_mine", 4)
    newer = saved(logdir / "2026-01-03T00-00-00_mine")
    assert newest_run(str(logdir), "mine", "").path == older
    assert f"{newer}: has no checkpoint to go on from" in caplog_ldm.text


def test_where_there_is_no_checkpoint_the_newest_directory_is_started_anew(logdir):
    saved(logdir / "2026-01-02T00-00-00_mine")
    newer = saved(logdir / "2026-01-03T00-00-00_mine", 4)
    damage(newer / "checkpoints" / "last.ckpt")
    run = newest_run(str(logdir), "mine", "")
    assert (run.path, run.resume_from, run.is_anew) == (newer, None, True)


@pytest.fixture
def run(logdir):
    """A run with a checkpoint and its records."""
    run = resume_run(str(saved(logdir / "2026-01-02T00-00-00_mine", 4)))
    run.configs.mkdir()
    write(run.configs / "1-project.yaml", {key: first_stage()[key] for key in ("model", "data")})
    write(run.configs / "1-lightning.yaml", {"lightning": {}})
    return run


def test_a_start_anew_reads_no_records_of_before_and_nobody_does_later(run):
    anew = replace(run, resume_from=None, is_anew=True)
    assert anew.config_files() == []
    set_aside(anew)
    assert run.config_files() == []
    aside = run.configs / "of_starts_without_checkpoint"
    assert sorted(path.name for path in aside.iterdir()) == ["1-lightning.yaml", "1-project.yaml"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["model.params.embed_dim=8"], "model.params.embed_dim: 8, but .* with 4; give another"),
        (["model.params.use_ema=true"], "model.params.use_ema: True, but .* with nothing"),
        (["model.params.ddconfig.dropout=0.2"], r"model.params.ddconfig.dropout: 0.2, .* 0.1"),
        (["model.target=x"], "model.target: 'x'"),
    ],
)
def test_another_model_is_refused_by_the_key_that_differs(run, tmp_path, words, expected):
    words = ["-b", write(tmp_path / "c.yaml", first_stage()), "-n", "mine", *words]
    with pytest.raises(ConfigError, match=expected):
        require_same_model(parse(words), run)


def test_what_the_configuration_no_longer_says_is_a_difference(run, tmp_path):
    config = first_stage()
    del config["model"]["params"]["monitor"]
    with pytest.raises(ConfigError, match=r"model.params.monitor: nothing, .* 'val/rec_loss'"):
        require_same_model(parse(["-b", write(tmp_path / "c.yaml", config)]), run)


def test_rates_data_and_trainer_may_differ(run, tmp_path):
    config = first_stage()
    del config["model"]["learning_rate"]
    words = ["model.base_learning_rate=1e-6", "data.params.batch_size=2", "--max_steps", "99"]
    require_same_model(parse(["-b", write(tmp_path / "c.yaml", config), *words]), run)


def test_a_run_that_is_trained_is_not_trained_twice(run, logdir, tmp_path):
    words = ["-n", "mine", "--auto-resume", "-t"]
    with ExitStack() as holding:
        found = run_dir(parse(["-l", str(logdir), *words]), holding)
        assert found.path == run.path
        with pytest.raises(ConfigError, match=f"the run mine in {logdir} is being trained by"):
            started(logdir, *words)
        with pytest.raises(ConfigError, match=f"{run.path} is being trained by"):
            started(logdir, "-r", str(run.path), "-t")
        assert started(logdir, "-r", str(run.path)).path == run.path  # only looks
        assert started(logdir, "-n", "mine", "-t").path != run.path
    assert started(logdir, *words).path == run.path


def test_two_first_starts_of_a_name_are_not_two_runs(logdir):
    words = ["-n", "mine", "--auto-resume", "-t"]
    with ExitStack() as holding:
        run_dir(parse(["-l", str(logdir), *words]), holding)
        with pytest.raises(ConfigError, match="is being trained by"):
            started(logdir, *words)
    assert not logdir.exists()  # nothing was started after all


def test_a_held_run_that_is_given_back_is_found_again(run):
    with held(run.path / ".lock", "it"):
        pass
    assert started(run.path.parent, "-r", str(run.path), "-t").path == run.path


def test_the_first_start_of_a_name_may_begin_from_a_checkpoint(run, logdir, monkeypatch):
    checkpoint = run.checkpoints / "last.ckpt"
    words = ["--auto-resume", "--resume_from_checkpoint", str(checkpoint)]
    first = started(logdir, "-n", "other", *words)
    assert (first.path.name, first.resume_from) == (f"{first.now}_other", checkpoint)
    saved(first.path, 6)
    assert started(logdir, "-n", "other", *words).resume_from == first.checkpoints / "last.ckpt"


def test_processes_look_for_each_other_where_the_run_lies(run, logdir):
    assert shared_directory(parse(["-r", str(run.path)])) == run.path
    assert shared_directory(parse(["-r", str(run.checkpoints / "last.ckpt")])) == run.path
    assert shared_directory(parse(["-l", str(logdir)])) == logdir


def test_a_weights_only_file_is_none_to_go_on_from(tmp_path):
    run = RunDir(tmp_path / "run", "1")
    run.checkpoints.mkdir(parents=True)
    torch.save({"state_dict": {}}, run.checkpoints / "last.ckpt")
    assert rundir._newest(run.path) is None
