"""The block `model`: read, stripped of checkpoints, built."""

import pytest
from omegaconf import OmegaConf

from ldm.config import ConfigError, instantiate_model, model_block, without_checkpoints

RECORDER = "tests.config.specimen.Recorder"


def test_the_block_is_plain_and_resolved():
    config = OmegaConf.create(
        {"size": 3, "model": {"target": RECORDER, "params": {"x": "${size}"}}}
    )
    block = model_block(config)
    assert block == {"target": RECORDER, "params": {"x": 3}}
    assert type(block["params"]) is dict


@pytest.mark.parametrize("config", [{}, {"model": None}, {"model": "m"}, {"data": {}}, 3])
def test_a_configuration_without_the_block_is_refused(config):
    with pytest.raises(ConfigError, match="there is no `model:` block"):
        model_block(config)


def test_an_interpolation_that_leads_nowhere_is_refused():
    with pytest.raises(ConfigError, match=r"model: .*'nowhere' not found"):
        model_block(OmegaConf.create({"model": "${nowhere}"}))


def test_values_that_other_blocks_need_are_not_asked_for():
    data = {"train": "???", "validation": "${data.train}"}
    config = OmegaConf.create({"data": data, "model": {"target": RECORDER}})
    assert model_block(config) == {"target": RECORDER}
    config.model.params = {"x": "${data.train}"}
    with pytest.raises(ConfigError, match=r"^data\.train: a value is needed here"):
        model_block(config)


def test_a_model_is_built_without_the_rates_beside_its_target():
    made = instantiate_model({"base_learning_rate": 1e-4, "target": RECORDER, "params": {"x": 3}})
    assert made.params == {"x": 3}


def test_a_block_without_a_target_is_refused():
    with pytest.raises(ConfigError, match="model: expected a mapping with a target"):
        instantiate_model({"params": {}})


def test_checkpoints_are_left_out_at_every_depth():
    value = {"ckpt_path": "a", "parts": [{"ckpt_path": "b", "x": 1}], "inner": {"ckpt_path": None}}
    assert without_checkpoints(value) == {"parts": [{"x": 1}], "inner": {}}
    assert "ckpt_path" in value
