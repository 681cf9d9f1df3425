"""A training whose weights stop being finite, on the command line."""

from pathlib import Path

import pytest
import torch

from ldm.cli.train import main, train
from tests.cli.runs import first_stage, only_run, run_main, write

pytestmark = pytest.mark.slow

WORDS = ["--max_steps", "4", "--val_check_interval", "2"]
WILD = "model.learning_rate=1e9"
WILDER = "model.learning_rate=1e18"  # so that the very next loss is not finite
UNGUARDED = "lightning.callbacks.guard=null"


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write(Path("config.yaml"), first_stage())


def test_without_a_guard_it_is_one_error_and_writes_nothing(config, tmp_path):
    code, said = run_main(["-b", config, "-t", WILD, UNGUARDED, *WORDS], tmp_path)
    assert code == 1, said
    assert said.count("error: ") == 1
    assert "tensors of the weights are not finite" in said
    assert "Traceback" not in said
    assert not list((only_run(tmp_path / "logs") / "checkpoints").glob("*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([WILD, UNGUARDED, "--max_steps", "4"], "last.ckpt is kept"),
        ([WILDER, "--max_steps", "5"], "the last 2 steps to step 5 had losses or gradients"),
    ],
    ids=["unguarded", "guarded"],
)
def test_what_was_good_stays_and_is_gone_on_from_at_a_smaller_rate(words, said, config, caplog_ldm):
    run = train(["-b", config, "-t", "--max_steps", "2"])
    last = run.path / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    with pytest.raises(SystemExit) as ended:
        main(["-r", str(run.path), "-t", *words, "--val_check_interval", "6"])
    assert ended.value.code == 1
    assert said in caplog_ldm.text
    assert last.read_bytes() == before
    assert main(["-r", str(run.path), "-t", "model.learning_rate=1e-4", *WORDS]) == 0
    kept = torch.load(last, weights_only=True)
    assert kept["global_step"] == 4
    rates = [group["lr"] for each in kept["optimizer_states"] for group in each["param_groups"]]
    assert rates == pytest.approx([1e-4] * 2)
