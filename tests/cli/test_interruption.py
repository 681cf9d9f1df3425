"""Training that is interrupted leaves a checkpoint, and a resumed run is the uninterrupted one."""

import shutil
import signal
import time

import pytest
import torch

from ldm.callbacks import clock
from ldm.callbacks.signals import Stopped
from ldm.cli.exits import EXIT_INTERRUPTED, EXIT_RESUME
from ldm.cli.train import main, train
from ldm.config import ConfigError
from tests.callbacks.slurm import in_job
from tests.cli.runs import first_stage, only_run, run_main, second_stage, start_main, write

pytestmark = pytest.mark.slow

STAGES = {"first": first_stage, "second": second_stage}
STEPS = 10  # of 6 to an epoch


def configuration(stage):
    """Ten steps with dropout, a learning-rate schedule and a weight average."""
    config = STAGES[stage]()
    warm_up = {
        "warm_up_steps": [2 * STEPS],  # the rate differs in every step
        "cycle_lengths": [100],
        "f_start": [0.1],
        "f_max": [1.0],
        "f_min": [1.0],
    }
    params = config["model"]["params"]
    params["scheduler_config"] = {
        "target": "ldm.lr_scheduler.LambdaLinearScheduler",
        "params": warm_up,
    }
    params["use_ema"] = True
    return config


@pytest.fixture(scope="module", params=list(STAGES))
def stage(request):
    return request.param


@pytest.fixture(scope="module")
def uninterrupted(stage, tmp_path_factory):
    """The last checkpoint of a run that nothing interrupted."""
    return finished(configuration(stage), tmp_path_factory.mktemp("uninterrupted"))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory, in which configurations may name the callbacks that interrupt."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LDM_TRUST", "tests")
    return tmp_path


def finished(config, directory, *flags):
    path = write(directory / "config.yaml", config)
    run = train(["-b", path, "-t", "-l", str(directory / "logs"), *flags])
    return read(run.path)


def read(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def resumed(run, *flags):
    train(["-r", str(run), "-t", "lightning.callbacks.interruption=null", *flags])
    return read(run)


def interrupted_by(config, target, **params):
    config["lightning"]["callbacks"]["interruption"] = {
        "target": f"tests.cli.interrupting.{target}",
        "params": params,
    }
    return config


def assert_equal(one, other, path="checkpoint"):
    """Bit for bit, whatever the values are nested in."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), f"{path}: {(one - other).abs().max()}"
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_equal(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{path}.{index}")
    else:
        assert one == other, path


def assert_same_training(one, other):
    """Weights, averages, optimizers, schedules, step and place in the data are the same."""
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    for part in (*parts, "DataModuleFromConfig"):
        assert_equal(one[part], other[part], part)


def stopped(config, directory, *flags):
    """The exit code of a start that was stopped, and its run."""
    with pytest.raises(Stopped) as ended:
        finished(config, directory, *flags)
    return ended.value.code, only_run(directory / "logs")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, EXIT_RESUME), (signal.SIGINT, EXIT_INTERRUPTED)]
)
def test_a_signal_saves_and_stops_and_the_run_goes_on_as_if_there_had_been_none(
    stage, uninterrupted, place, number, code
):
    config = interrupted_by(configuration(stage), "SignalAt", number=int(number), batch=8)
    found, run = stopped(config, place)
    assert found == code
    assert read(run)["global_step"] == 8
    assert_same_training(resumed(run), uninterrupted)


def test_sigusr1_in_a_job_saves_has_it_requeued_and_stops(
    stage, uninterrupted, place, monkeypatch, caplog_ldm
):
    said = in_job(monkeypatch, place)
    monkeypatch.setenv("SLURM_NTASKS", "1")  # so that Lightning sees the job, too
    config = interrupted_by(configuration(stage), "SignalAt", number=int(signal.SIGUSR1), batch=8)
    code, run = stopped(config, place)
    assert code == EXIT_RESUME
    assert read(run)["global_step"] == 8
    assert said.read_text() == "requeue 7\n"
    assert "and stopped at step 8, exit code 75" in caplog_ldm.text
    assert not list(place.rglob("hpc_ckpt*"))  # Lightning's own answer
    assert_same_training(resumed(run), uninterrupted)


def test_the_time_limit_saves_and_stops_and_the_run_goes_on_as_if_there_had_been_none(
    stage, uninterrupted, place, monkeypatch
):
    began = time.monotonic()
    monkeypatch.setattr(clock, "process_start", lambda: began)
    config = interrupted_by(configuration(stage), "WaitAt", batch=8, until=began + 0.4)
    code, run = stopped(config, place, "--max-time", "0.4s")
    assert code == EXIT_RESUME
    assert 1 <= read(run)["global_step"] <= 8
    monkeypatch.undo()
    assert_same_training(resumed(run, "lightning.trainer.max_time=1h"), uninterrupted)


def test_the_same_command_line_ends_a_run_that_is_stopped_again_and_again(
    stage, uninterrupted, place, caplog_ldm
):
    config = interrupted_by(configuration(stage), "SignalAt", number=int(signal.SIGTERM), batch=4)
    words = ["-b", write(place / "config.yaml", config), "-t", "-n", "mine", "--auto-resume"]
    codes = []
    while codes[-1:] != [0] and len(codes) < 5:
        try:
            codes.append(main(words))
        except Stopped as ended:
            codes.append(ended.code)
    assert codes == [EXIT_RESUME, EXIT_RESUME, 0]
    run = only_run(place / "logs")
    assert_same_training(read(run), uninterrupted)
    assert main(words) == 0
    assert f"logs/{run.name} is finished: step {STEPS} was its last" in caplog_ldm.text
    assert_same_training(read(run), uninterrupted)


def test_a_signal_before_training_ends_at_once_and_the_directory_is_started_anew(place):
    config = configuration("second")
    words = ["-b", write(place / "config.yaml", config), "-t", "-n", "mine", "--auto-resume"]
    early = "tests.cli.interrupting.SignalWhenBuilt"
    with pytest.raises(Stopped) as ended:
        main(
            [
                *words,
                f"lightning.callbacks.early.target={early}",
                "lightning.callbacks.early.params.number=15",
            ]
        )
    assert ended.value.code == EXIT_RESUME
    run = only_run(place / "logs")
    assert not (run / "checkpoints").exists()
    assert main([*words, "--max_steps", "1", "model.params.use_ema=false"]) == 0
    assert read(run)["global_step"] == 1
    assert only_run(place / "logs") == run


def test_sigusr1_saves_and_goes_on(stage, place, caplog_ldm):
    config = interrupted_by(configuration(stage), "SignalAt", number=int(signal.SIGUSR1), batch=3)
    config["lightning"]["callbacks"]["interruption2"] = {
        "target": "tests.cli.interrupting.RaiseAt",
        "params": {"batch": 5},
    }
    with pytest.raises(RuntimeError, match="the callback's own error"):
        finished(config, place)
    assert f"SIGUSR1: saved {place / 'logs'}" in caplog_ldm.text
    assert "last.ckpt at step 3" in caplog_ldm.text
    assert read(only_run(place / "logs"))["global_step"] == 5


def test_a_signal_to_one_of_two_processes_stops_both(place):
    config = interrupted_by(second_stage(), "SignalAt", number=15, batch=3, rank=1)
    words = ["--accelerator", "cpu", "--devices", "2", "-n", "mine", "--auto-resume"]
    code, said = run_main(["-b", write(place / "config.yaml", config), "-t", *words], place, 300)
    assert code == EXIT_RESUME, said
    assert said.count("SIGTERM: saved") == 1
    assert "Traceback" not in said
    run = only_run(place / "logs")
    assert read(run)["global_step"] == 3
    assert sorted(path.name for path in run.glob(".*")) == []


def test_an_exception_saves_and_shows_its_own_traceback(stage, uninterrupted, place):
    config = interrupted_by(configuration(stage), "RaiseAt", batch=8)
    code, said = run_main(["-b", write(place / "config.yaml", config), "-t"], place)
    assert code == 1
    assert said.rstrip().endswith("RuntimeError: the callback's own error")
    assert said.count("Traceback") == 1
    run = only_run(place / "logs")
    assert read(run)["global_step"] == 8
    assert_same_training(resumed(run), uninterrupted)


def test_a_signal_during_validation_is_answered_there(stage, uninterrupted, place):
    config = interrupted_by(
        configuration(stage), "SignalAt", number=int(signal.SIGTERM), batch=1, validation=True
    )
    with pytest.raises(Stopped):
        finished(config, place)
    run = only_run(place / "logs")
    assert read(run)["global_step"] == 6
    assert_same_training(resumed(run), uninterrupted)


@pytest.mark.parametrize("kind", ["signal", "exception"])
def test_a_step_of_several_batches_is_taken_again_as_a_whole(stage, place, kind):
    flags = ("--accumulate_grad_batches", "3", "--max_steps", "5")
    (place / "whole").mkdir()
    expected = finished(configuration(stage), place / "whole", *flags)
    if kind == "signal":
        config = interrupted_by(configuration(stage), "SignalAt", number=15, batch=8)
        error = Stopped
    else:
        config = interrupted_by(configuration(stage), "RaiseAt", batch=8)
        error = RuntimeError
    (place / "parts").mkdir()
    with pytest.raises(error):
        finished(config, place / "parts", *flags)
    run = only_run(place / "parts" / "logs")
    assert read(run)["global_step"] == (3 if kind == "signal" else 2)
    assert_same_training(resumed(run), expected)


def test_a_run_is_resumed_with_its_own_seed_and_flags(place):
    config = configuration("second")
    expected = finished(config, place, "--seed", "7")
    shutil.rmtree(place / "logs")
    finished(config, place, "--seed", "7", "--max_steps", "4")
    assert_same_training(resumed(only_run(place / "logs"), "--max_steps", str(STEPS)), expected)


def test_signals_from_outside_are_answered_while_processes_read_the_data(place):
    config = second_stage()
    config["lightning"]["trainer"]["max_steps"] = 100_000
    config["data"]["params"]["num_workers"] = 2
    process = start_main(["-b", write(place / "config.yaml", config), "-t"], place)
    try:
        wait_for(lambda: list(place.glob("logs/*/images/train/*.png")))
        process.send_signal(signal.SIGUSR1)
        wait_for(lambda: list(place.glob("logs/*/checkpoints/last.ckpt")))
        assert "is being trained by process" in refused(only_run(place / "logs"))
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75, said
    assert "Traceback" not in said
    run = only_run(place / "logs")
    step = read(run)["global_step"]
    assert resumed(run, "--max_steps", str(step + 2))["global_step"] == step + 2


def refused(run):
    """The error of a second process that would train a run."""
    with pytest.raises(ConfigError) as error:
        train(["-r", str(run), "-t"])
    return str(error.value)


def test_signal_handlers_are_given_back(place):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    config = interrupted_by(first_stage(), "RaiseAt", batch=2)
    with pytest.raises(RuntimeError):
        finished(config, place)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_file_of_weights_alone_is_not_resumed(place, caplog_ldm):
    run = train(["-b", write(place / "config.yaml", first_stage()), "-t"])
    weights = run.checkpoints / "weights.ckpt"
    torch.save({"state_dict": read(run.path)["state_dict"]}, weights)
    assert main(["-r", str(weights), "-t"]) == 2
    assert f"model.params.ckpt_path={weights}" in caplog_ldm.text


def wait_for(is_there, seconds=90):
    end = time.monotonic() + seconds
    while not is_there():
        assert time.monotonic() < end
        time.sleep(0.1)
