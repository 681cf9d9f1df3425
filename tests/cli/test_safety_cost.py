"""What safety costs is found by switching it off, callback by callback."""

import time
from pathlib import Path

import pytest
import pytorch_lightning as pl

from ldm.cli.safety_cost import safety_costs
from ldm.config import ConfigError, trust
from tests.cli.runs import script_module, unconditional, write

BUSY = 0.03  # seconds


class Busy(pl.Callback):
    """Keeps the processor busy after each step."""

    def on_train_batch_end(self, *_):
        end = time.process_time() + BUSY
        while time.process_time() < end:
            pass


@pytest.fixture
def config(tmp_path):
    config = unconditional()
    config["lightning"]["callbacks"]["busy"] = {"target": f"{__name__}.Busy"}
    trust("tests")
    return write(tmp_path / "config.yaml", config)


@pytest.mark.slow
def test_a_callback_that_is_new_is_measured_without_being_named(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = safety_costs(config, [], rounds=2, block=2)
    costs = {cost.name: cost for cost in found.costs}
    assert costs.keys() >= {"SeededSteps", "LastCheckpoint", "Busy", "all"}
    assert not costs.keys() & {"Throughput", "LearningRateMonitor", "RunRecord"}
    busy = costs["Busy"]
    assert BUSY < busy.hooks < 2 * BUSY
    assert sorted(busy.ratios)[0] > 1 + BUSY / found.step / 2
    assert costs["SeededSteps"].hooks < BUSY / 2
    assert costs["all"].hooks == pytest.approx(sum(c.hooks for c in found.costs[:-1]))
    assert 0 < found.saving_share < 1
    assert found.table().count("\n") == len(costs) + 1
    assert [path.name for path in Path.cwd().iterdir()] == ["config.yaml"]


def test_one_round_says_nothing_of_the_spread():
    with pytest.raises(ConfigError, match="rounds: 1"):
        safety_costs("config.yaml", [], rounds=1)


def test_safety_is_measured_alone():
    with pytest.raises(ConfigError, match="--safety"):
        script_module("benchmark").benchmark(["config.yaml", "--safety", "--sampling"])
