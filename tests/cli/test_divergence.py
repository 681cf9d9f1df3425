"""A training whose weights stop being finite, on the command line."""

from pathlib import Path

import pytest
import torch

from ldm.cli.train import main, train
from tests.cli.runs import first_stage, only_run, run_main, write

pytestmark = pytest.mark.slow

WORDS = ["--max_steps", "4", "--val_check_interval", "2"]
WILD = "model.learning_rate=1e9"


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write(Path("config.yaml"), first_stage())


def test_it_is_one_error_and_writes_nothing(config, tmp_path):
    code, said = run_main(["-b", config, "-t", WILD, *WORDS], tmp_path)
    assert code == 1, said
    assert said.count("error: ") == 1
    assert "tensors of the weights are not finite" in said
    assert "Traceback" not in said
    assert not list((only_run(tmp_path / "logs") / "checkpoints").glob("*"))


def test_what_was_good_stays_and_is_gone_on_from_at_a_smaller_rate(config, caplog_ldm):
    run = train(["-b", config, "-t", "--max_steps", "2"])
    last = run.path / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    with pytest.raises(SystemExit) as ended:
        main(["-r", str(run.path), "-t", WILD, *WORDS, "--val_check_interval", "6"])
    assert ended.value.code == 1
    assert f"{last} is kept" in caplog_ldm.text
    assert last.read_bytes() == before
    assert main(["-r", str(run.path), "-t", "model.learning_rate=1e-4", *WORDS]) == 0
    kept = torch.load(last, weights_only=True)
    assert kept["global_step"] == 4
    rates = [group["lr"] for each in kept["optimizer_states"] for group in each["param_groups"]]
    assert rates == pytest.approx([1e-4] * 2)
