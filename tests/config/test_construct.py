"""From configurations to objects: one level deep, and depth first."""

import copy

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from ldm.config import ConfigError, build, instantiate_from_config, load, to_plain
from tests.config.specimen import Outer, Recorder

HERE = "tests.config.specimen"
NESTED = {
    "target": f"{HERE}.Recorder",
    "params": {
        "inner": {"target": f"{HERE}.Recorder", "params": {"x": [1, 2]}},
        "parts": [{"target": f"{HERE}.make", "params": {"size": 3}}, 5],
        "plain": {"a": {"target": f"{HERE}.make"}},
    },
}


@pytest.mark.parametrize("wrap", [lambda config: config, OmegaConf.create], ids=["dict", "omega"])
def test_instantiate_is_one_level_deep_and_hands_over_plain_containers(wrap):
    made = instantiate_from_config(wrap(copy.deepcopy(NESTED)))
    assert made.params == NESTED["params"]
    assert type(made.params["inner"]) is dict
    assert type(made.params["parts"]) is list


@pytest.mark.parametrize("wrap", [lambda config: config, OmegaConf.create], ids=["dict", "omega"])
def test_build_makes_the_innermost_objects_first(wrap):
    made = build(wrap(copy.deepcopy(NESTED)))
    assert isinstance(made.params["inner"], Recorder)
    assert made.params["inner"].params == {"x": [1, 2]}
    assert made.params["parts"] == [{"size": 3}, 5]
    assert made.params["plain"] == {"a": {"size": 1}}


@pytest.mark.parametrize("value", [nn.Identity(), 3, "text", None, torch.ones(2)], ids=str)
def test_build_returns_an_object_as_it_is(value):
    assert build(value) is value


def test_build_keeps_objects_inside_a_configuration():
    net = nn.Linear(2, 3)
    assert build({"target": f"{HERE}.Recorder", "params": {"net": net}}).params["net"] is net


@pytest.mark.parametrize("marker", ["__is_first_stage__", "__is_unconditional__"])
def test_the_published_markers_give_nothing(marker):
    assert instantiate_from_config(marker) is None
    assert build(marker) is None


def test_build_leaves_a_marker_inside_of_something_to_who_reads_it():
    config = {"target": f"{HERE}.Recorder", "params": {"cond_stage_config": "__is_first_stage__"}}
    assert build(config).params == {"cond_stage_config": "__is_first_stage__"}


@pytest.mark.parametrize("params", [{}, {"params": None}, {"params": {}}])
def test_params_may_be_left_out(params):
    assert instantiate_from_config({"target": f"{HERE}.make", **params}) == {"size": 1}


def test_given_parameters_are_added():
    config = {"target": "torch.optim.SGD", "params": {"lr": 0.5}}
    weight = nn.Parameter(torch.zeros(1))
    made = instantiate_from_config(config, given={"params": [weight]})
    assert made.param_groups[0]["lr"] == 0.5
    assert made.param_groups[0]["params"] == [weight]


def test_a_published_name_of_another_package_finds_its_present_home():
    from ldm.nets.autoencoder import Encoder

    encoder = instantiate_from_config(
        {
            "target": "sgm.modules.diffusionmodules.model.Encoder",
            "params": {
                "ch": 32,
                "out_ch": 3,
                "ch_mult": [1, 2],
                "num_res_blocks": 1,
                "attn_resolutions": [],
                "in_channels": 3,
                "resolution": 8,
                "z_channels": 4,
            },
        }
    )
    assert isinstance(encoder, Encoder)


@pytest.mark.parametrize("part", ["", "b", "b.d", "z"])
def test_value_still_to_be_given_is_named_once_in_any_part_that_refers_to_it(part):
    config = OmegaConf.create(
        {"a": "???", "b": {"c": "${a}", "d": {"e": "${b.c}"}}, "z": ["${a}", "???"]}
    )
    with pytest.raises(ConfigError, match=r"\Aa: a value .*\nz\.1: a value .*\Z"):
        to_plain(OmegaConf.select(config, part) if part else config)


def test_interpolations_are_resolved_before_the_constructor_sees_them():
    config = OmegaConf.create(
        {"size": 7, "net": {"target": f"{HERE}.make", "params": {"size": "${size}"}}}
    )
    assert instantiate_from_config(config.net) == {"size": 7}


@pytest.mark.parametrize("config", [{"params": {}}, {}, [], 5, "text", None])
def test_what_has_no_target_is_refused(config):
    with pytest.raises(ConfigError, match=r"data\.params\.train: expected a mapping with a target"):
        instantiate_from_config(config, path="data.params.train")


@pytest.mark.parametrize("construct", [instantiate_from_config, build])
def test_an_unknown_parameter_is_named_with_its_path_and_the_nearest(construct):
    config = {"target": f"{HERE}.PassesOn", "params": {"height": 1, "widthh": 2, "width": 1}}
    with pytest.raises(ConfigError) as caught:
        construct(config, path="model")
    assert str(caught.value) == (
        "model.params.widthh: PassesOn() got no 'widthh'; did you mean 'width'?"
    )


@pytest.mark.parametrize("construct", [instantiate_from_config, build])
def test_a_missing_parameter_is_named(construct):
    with pytest.raises(ConfigError, match=r"m\.params: Guided\(\) needs 'denoiser' \(Denoiser\)"):
        construct({"target": f"{HERE}.Guided", "params": {"scale": 1.0}}, path="m")


def test_what_a_constructor_objects_to_is_reported_with_its_path():
    config = {"target": f"{HERE}.Recorder", "params": {"a": [{"target": f"{HERE}.Strict"}]}}
    config["params"]["a"][0]["params"] = {"width": -1}
    with pytest.raises(ConfigError, match=r"^model\.params\.a\.0: width -1: expected 0 or more$"):
        build(config, path="model")


def test_a_constructor_that_builds_its_own_parts_adds_its_path():
    inner = {"target": f"{HERE}.Strict", "params": {"width": -1}}
    with pytest.raises(ConfigError, match=r"^model: tests\.config\.specimen\.Strict: width -1"):
        instantiate_from_config(
            {"target": f"{HERE}.Outer", "params": {"inner_config": inner}}, path="model"
        )
    assert Outer({"target": f"{HERE}.make"}).inner == {"size": 1}


def test_a_refused_target_is_reported_with_its_path():
    with pytest.raises(ConfigError, match=r"^lightning\.logger: os\.system: refused"):
        instantiate_from_config({"target": "os.system"}, path="lightning.logger")


def test_loading_and_building_does_not_change_the_configuration(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(OmegaConf.to_yaml(NESTED))
    config = load([path])
    before = copy.deepcopy(config)
    build(config)
    assert config == before


def test_a_value_still_to_be_given_is_named_once_though_others_refer_to_it():
    config = OmegaConf.create({"a": {"root": "???"}, "b": "${a.root}", "c": {"d": "???"}})
    with pytest.raises(ConfigError) as error:
        to_plain(config)
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["a.root", "c.d"]
    assert "a.root=VALUE" in str(error.value)
