import os
import signal
import sys

import pytest

from ldm.callbacks import slurm
from ldm.callbacks.stopping import (
    EXIT_RESUME,
    TIME,
    Stopped,
    answer_at_once,
    signals_restored,
)
from tests.callbacks.slurm import in_job


@pytest.fixture(autouse=True)
def at_once():
    """Signals are answered at once, as outside of training."""
    with signals_restored():
        answer_at_once()
        yield


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (TIME, 75), (signal.SIGINT, 130)],
)
def test_the_exit_code_says_whether_to_start_again(number, code):
    assert Stopped(number).code == code
    assert EXIT_RESUME == os.EX_TEMPFAIL


def test_sigterm_outside_of_training_ends_the_process_at_once():
    with pytest.raises(Stopped) as ended:
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 75


def test_ctrl_c_stays_an_interrupt():
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_sigusr1_outside_of_training_has_nothing_to_save(caplog_ldm):
    signal.raise_signal(signal.SIGUSR1)
    assert "SIGUSR1: nothing is being trained" in caplog_ldm.text


def test_sigusr1_has_a_job_requeued(tmp_path, monkeypatch, caplog_ldm):
    said = in_job(monkeypatch, tmp_path)
    with pytest.raises(Stopped):
        signal.raise_signal(signal.SIGUSR1)
    assert said.read_text() == "requeue 7\n"
    assert "job 7 is back in the queue" in caplog_ldm.text


def test_only_the_first_process_has_the_job_requeued(tmp_path, monkeypatch):
    said = in_job(monkeypatch, tmp_path)
    monkeypatch.setenv("SLURM_PROCID", "1")
    with pytest.raises(Stopped):
        signal.raise_signal(signal.SIGUSR1)
    assert not said.exists()


def test_a_job_in_a_terminal_is_none_to_requeue(tmp_path, monkeypatch):
    in_job(monkeypatch, tmp_path)
    assert slurm.is_batch_job()
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert not slurm.is_batch_job()
    signal.raise_signal(signal.SIGUSR1)


def test_a_requeueing_that_fails_is_shown_and_not_raised(tmp_path, monkeypatch, caplog_ldm):
    in_job(monkeypatch, tmp_path, "echo Requested operation is disabled >&2; exit 1")
    assert not slurm.requeue()
    assert "`scontrol requeue 7` failed" in caplog_ldm.text
    assert "by hand: Requested operation is disabled" in caplog_ldm.text


def test_a_machine_without_scontrol_is_shown_and_not_raised(monkeypatch, tmp_path, caplog_ldm):
    in_job(monkeypatch, tmp_path)
    monkeypatch.setenv("PATH", "")
    assert not slurm.requeue()
    assert "No such file or directory: 'scontrol'" in caplog_ldm.text


def test_a_job_that_is_not_to_be_requeued_is_not(tmp_path, monkeypatch):
    said = in_job(monkeypatch, tmp_path)
    monkeypatch.setenv("SBATCH_NO_REQUEUE", "")
    assert not slurm.requeue()
    assert not said.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_process_that_inherits_the_answer_dies_of_the_signal():
    child = os.fork()
    if not child:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os._exit(1)  # past the end of the tests
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGTERM
