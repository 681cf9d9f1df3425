"""What becomes of a new run's directory when its start fails."""

import pytest

from ldm.cli.rundir import RunDir, taken_back_on_error
from ldm.config import ConfigError


def begin(run, written):
    """A start that writes something and fails."""
    with taken_back_on_error(run):
        (run.path / written).parent.mkdir(parents=True)
        (run.path / written).write_text("")
        raise ConfigError("data: no such thing")


@pytest.mark.parametrize(
    ("written", "rank", "stays"),
    [
        ("configs/a.yaml", 0, False),
        ("configs/a.yaml", 1, True),
        ("checkpoints/last.ckpt", 0, True),
        ("bad_samples.log", 0, True),
    ],
)
def test_what_is_more_than_a_start_stays_and_one_process_decides(
    tmp_path, monkeypatch, written, rank, stays
):
    monkeypatch.setenv("RANK", str(rank))
    run = RunDir(tmp_path / "logs/run", "now")
    with pytest.raises(ConfigError):
        begin(run, written)
    assert run.path.exists() is stays
    assert run.path.parent.exists() is stays
