"""A second stage on a first stage that nobody trained: refused unless it is meant."""

import pytest

from ldm.cli.train import main
from tests.cli.runs import unconditional, write

KEY = "model.params.first_stage_config.params.ckpt_path"


@pytest.fixture
def start(tmp_path, caplog_ldm):
    """Read a configuration and check it, without training; its exit code and what it said."""

    def run(config):
        path = write(tmp_path / "config.yaml", config)
        code = main(["--base", path, "--logdir", str(tmp_path / "logs"), "--gpus", "cpu"])
        return code, caplog_ldm.text

    return run


def test_a_forgotten_checkpoint_of_the_first_stage_is_an_error(start):
    config = unconditional()
    del config["model"]["params"]["first_stage_config"]["params"]["ckpt_path"]
    code, said = start(config)
    assert code == 2
    assert KEY in said
    assert "null" in said


def test_an_untrained_first_stage_may_be_meant(start):
    config = unconditional()
    assert config["model"]["params"]["first_stage_config"]["params"]["ckpt_path"] is None
    assert start(config)[0] == 0


def test_no_first_stage_needs_no_checkpoint(start):
    config = unconditional()
    params = config["model"]["params"]
    params["first_stage_config"] = {"target": "ldm.models.autoencoder.IdentityFirstStage"}
    params["image_size"] = 16
    params["unet_config"]["params"] |= {"in_channels": 3, "out_channels": 3}
    assert start(config)[0] == 0
