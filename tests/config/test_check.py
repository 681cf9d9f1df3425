"""A whole configuration checked before anything is built."""

import pytest
from omegaconf import OmegaConf

from ldm.config import ConfigError, check

HERE = "tests.config.specimen"
UNET = {
    "image_size": 8,
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 3,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
}


def run_with(model_params, target=f"{HERE}.Values"):
    return {"model": {"target": target, "params": model_params}}


def problems(config):
    with pytest.raises(ConfigError) as caught:
        check(config)
    return str(caught.value).splitlines()


def test_a_sound_configuration_passes():
    check(
        OmegaConf.create(
            {
                "model": {
                    "base_learning_rate": 1e-4,
                    "target": "ldm.nets.unet.UNetModel",
                    "params": {**UNET, "channel_mult": [1, 2]},
                },
                "data": {"target": f"{HERE}.Recorder", "params": {"batch_size": 4}},
                "lightning": {
                    "trainer": {"max_steps": 10, "devices": "auto", "gpus": "0,"},
                    "callbacks": {"image_logger": {"params": {"batch_frequency": 5}}},
                    "modelcheckpoint": {"params": {"every_n_train_steps": 5}},
                },
            }
        )
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"modellx": {}}, "modellx: unknown key; did you mean 'model'?"),
        ({"x": {}}, "x: unknown key; known here: model, data, lightning"),
        (
            {"lightning": {"trianer": {}}},
            "lightning.trianer: unknown key; did you mean 'trainer'?",
        ),
        ({"lightning": {"callbacks": 5}}, "lightning.callbacks: expected a mapping, got 5"),
        (
            {"lightning": {"callbacks": {"image_logger": 5}}},
            "lightning.callbacks.image_logger: expected a mapping with `target` or `params`, got 5",
        ),
        (
            {"lightning": {"modelcheckpoint": {"param": {}}}},
            "lightning.modelcheckpoint.param: unknown key; did you mean 'params'?",
        ),
        (
            {"lightning": {"logger": {"params": 5}}},
            "lightning.logger.params: expected a mapping, got 5",
        ),
        (
            {"lightning": {"trainer": {"max_stepz": 1}}},
            "lightning.trainer.max_stepz: Trainer() got no 'max_stepz'; did you mean 'max_steps'?",
        ),
        (
            {"lightning": {"trainer": {"max_steps": "many"}}},
            "lightning.trainer.max_steps: expected int, got 'many'",
        ),
        (
            {"model": {"target": f"{HERE}.Values", "parrams": {}}},
            "model.parrams: unknown key; did you mean 'params'?",
        ),
        (
            {"model": {"target": f"{HERE}.Values", "params": [1]}},
            "model.params: expected a mapping, got [1]",
        ),
        ({"model": 5}, "model: expected a mapping, got 5"),
        (
            {"model": {"base_learning_rate": "fast"}},
            "model.base_learning_rate: expected a number above 0, got 'fast'",
        ),
        (
            {"model": {"base_learning_rate": -1e-4}},
            "model.base_learning_rate: expected a number above 0, got -0.0001",
        ),
    ],
)
def test_an_unsound_block_is_reported(config, message):
    assert problems(config)[0] == message


@pytest.mark.parametrize("config", [[], 5, None, OmegaConf.create([1])], ids=str)
def test_what_is_no_mapping_is_refused(config):
    assert "expected a mapping with model, data, lightning" in problems(config)[0]


@pytest.mark.parametrize(
    "place", ["model.params.a", "data.params.train", "lightning.callbacks.x", "model.params.a.0.b"]
)
def test_a_refused_target_is_found_wherever_it_stands(place):
    value = {"target": "os.system", "params": {"command": "true"}}
    for part in reversed(place.split(".")):
        value = [value] if part == "0" else {part: value}
    value["model"] = {"target": f"{HERE}.Recorder", **value.get("model", {})}
    assert problems(value)[0].startswith(f"{place}.target: os.system: refused")


def test_a_misspelt_key_of_our_own_class_is_reported_with_path_and_nearest_name():
    config = {"model": {"target": f"{HERE}.Recorder"}}
    config["model"]["params"] = {
        "unet_config": {"target": "ldm.nets.unet.UNetModel", "params": {**UNET, "num_head": 4}}
    }
    assert problems(config) == [
        "model.params.unet_config.params.num_head: UNetModel() got no 'num_head'; "
        "did you mean 'num_heads'?"
    ]


def test_a_missing_key_of_our_own_class_is_reported():
    params = {key: value for key, value in UNET.items() if key != "in_channels"}
    assert problems(run_with(params, "ldm.nets.unet.UNetModel")) == [
        "model.params: UNetModel() needs 'in_channels' (int >= 1)"
    ]


def test_a_number_that_only_the_user_has_must_be_given_but_not_an_object():
    assert problems(run_with({}, f"{HERE}.Guided")) == [
        "model.params: Guided() needs 'scale' (float)"
    ]
    check(run_with({"scale": 2}, f"{HERE}.Guided"))


def test_optimizers_need_no_parameters_in_the_file():
    check(run_with({"lr": 1e-4, "betas": [0.9, 0.95]}, "torch.optim.AdamW"))


def test_what_the_command_line_adds_to_a_logger_may_be_missing():
    logger = {"target": "pytorch_lightning.loggers.CSVLogger", "params": {"name": "x"}}
    check({"lightning": {"logger": logger}})
    logger["params"]["namee"] = "y"
    assert "did you mean 'name'?" in problems({"lightning": {"logger": logger}})[0]


def test_kwargs_that_name_a_typed_dict_take_its_keys_alone():
    params = {"first_stage_config": {}, "unet_config": {}, "timesteps": 4}
    check(run_with(params, f"{HERE}.FromTypedDict"))
    assert problems(run_with({**params, "timestep": 4}, f"{HERE}.FromTypedDict")) == [
        "model.params.timestep: FromTypedDict() got no 'timestep'; did you mean 'timesteps'?"
    ]
    assert problems(run_with({**params, "timesteps": "4"}, f"{HERE}.FromTypedDict")) == [
        "model.params.timesteps: expected int, got '4'; write the number without quotes"
    ]
    del params["unet_config"]
    assert problems(run_with(params, f"{HERE}.FromTypedDict")) == [
        "model.params: FromTypedDict() needs 'unet_config' (Any)"
    ]


def test_kwargs_of_a_class_are_those_of_its_base():
    check(run_with({"height": 1, "width": 2, "depth": 3}, f"{HERE}.PassesOn"))
    assert problems(run_with({"height": 1, "depht": 2, "width": 2}, f"{HERE}.PassesOn")) == [
        "model.params.depht: PassesOn() got no 'depht'; did you mean 'depth'?"
    ]


@pytest.mark.parametrize(
    "target", ["torch.nn.Identity", "pytorch_lightning.strategies.DDPStrategy"]
)
def test_kwargs_of_another_library_take_anything(target):
    check(run_with({"whatever": 1}, target))


def test_a_library_without_kwargs_takes_its_parameters_alone():
    assert "did you mean 'bias'" in problems(run_with({"biass": 1}, "torch.nn.Conv2d"))[0]


def test_a_class_without_a_constructor_takes_nothing():
    check(run_with({}, f"{HERE}.Empty"))
    assert problems(run_with({"size": 1}, f"{HERE}.Empty")) == [
        "model.params.size: Empty() got no 'size'"
    ]


FITTING = [
    ("whole", 3),
    ("real", 3),
    ("real", 3.5),
    ("flag", True),
    ("text", "3"),
    ("maybe", None),
    ("maybe", 1),
    ("path", "a/b"),
    ("norm", "l1"),
    ("level", 2),
    ("many", [1, 2]),
    ("pair", [1, 2]),
    ("names", ["a"]),
    ("table", {"a": 1}),
    ("module", {"target": "torch.nn.Identity"}),
    ("module", None),
    ("tensor", 1),
    ("anything", [1, {"a": None}]),
    ("call", "name"),
    ("unseen", 5),
    ("implicit", None),
    ("sizes", [1, 2, 3]),
    ("count", 1),
    ("counts", [1, 2]),
    ("weight", 0),
    ("start", 0),
]
UNFITTING = [
    ("whole", 3.5, "expected int, got 3.5"),
    ("whole", 1e4, "expected int, got 10000.0; write 10000"),
    ("whole", True, "expected int, got True"),
    ("whole", "3", "expected int, got '3'; write the number without quotes"),
    ("whole", None, "expected int, got None"),
    ("real", "1e-4", "expected float, got '1e-4'; write the number without quotes"),
    ("real", False, "expected float, got False"),
    ("real", [1.0], "expected float, got [1.0]"),
    ("flag", 1, "expected bool, got 1"),
    ("flag", "true", "expected bool, got 'true'"),
    ("text", 3, "expected str, got 3"),
    ("text", {"target": "torch.nn.Identity"}, "expected str, got {'target': 'torch.nn.Identity'}"),
    ("maybe", "x", "expected float or None, got 'x'"),
    ("norm", "l3", "expected 'l1' or 'l2', got 'l3'"),
    ("norm", "l2 ", "expected 'l1' or 'l2', got 'l2 '; did you mean 'l2'?"),
    ("level", 3, "expected 1 or 2, got 3"),
    ("level", True, "expected 1 or 2, got True"),
    ("many", 1, "expected list of int, got 1"),
    ("many", [1, "2"], "expected list of int, got [1, '2']"),
    ("pair", [1], "expected list of int, got [1]"),
    ("names", "a", "expected list of str or None, got 'a'"),
    ("table", {"a": "x"}, "expected mapping or None, got {'a': 'x'}"),
    ("module", 5, "expected Module or None, got 5"),
    ("implicit", "x", "expected int, got 'x'"),
    ("sizes", [1.5], "expected int or list of int, got [1.5]"),
    ("count", 0, "expected int >= 1, got 0"),
    ("count", 1.0, "expected int >= 1, got 1.0; write 1"),
    ("counts", [2, 0], "expected list of int >= 1 or None, got [2, 0]"),
    ("weight", -0.5, "expected float >= 0, got -0.5"),
    ("start", -1, "expected int >= 0, got -1"),
    ("start", -1.0, "expected int >= 0, got -1.0"),
    ("weight", -1.0, "expected float >= 0, got -1.0"),
    ("count", "0", "expected int >= 1, got '0'"),
    ("count", "1", "expected int >= 1, got '1'; write the number without quotes"),
]


@pytest.mark.parametrize(("name", "value"), FITTING)
def test_a_value_that_fits_its_annotation_passes(name, value):
    check(run_with({name: value}))


@pytest.mark.parametrize(("name", "value", "message"), UNFITTING)
def test_a_value_that_does_not_fit_says_what_was_expected(name, value, message):
    assert problems(run_with({name: value})) == [f"model.params.{name}: {message}"]


@pytest.mark.parametrize("text", ["batch_size", "a.0.b"])
def test_a_value_still_to_be_given_is_reported_with_the_override_that_gives_it(text):
    value = "???"
    for part in reversed(text.split(".")):
        value = [value] if part == "0" else {part: value}
    assert problems(run_with(value, f"{HERE}.Recorder")) == [
        f"model.params.{text}: a value is needed here, "
        f"give it in the YAML or as model.params.{text}=VALUE"
    ]


def test_an_interpolation_that_leads_nowhere_is_reported_with_its_path():
    config = OmegaConf.create(run_with({"whole": "${data.size}"}))
    assert problems(config)[0].startswith("model.params.whole: ")
    assert "data.size" in problems(config)[0]


def test_an_interpolated_value_is_judged_by_what_it_resolves_to():
    config = run_with({"whole": "${data.params.size}"})
    config["data"] = {"target": f"{HERE}.Recorder", "params": {"size": "big"}}
    assert problems(OmegaConf.create(config)) == ["model.params.whole: expected int, got 'big'"]


def test_everything_wrong_is_shown_at_once_up_to_ten_lines():
    few = problems(run_with({"wole": 1, "real": "x", "flag": 2}))
    assert [line.split(":")[0] for line in few] == [
        "model.params.wole",
        "model.params.real",
        "model.params.flag",
    ]
    many = problems(run_with({f"unknown_{index}": 1 for index in range(25)}))
    assert len(many) == 11
    assert many[-1] == "... and 15 more"


def test_a_parameter_called_target_is_no_configuration():
    check(run_with({"target": "not a path"}, f"{HERE}.Recorder"))


@pytest.mark.parametrize(
    "key", ["unet_config", "sampler_config", "objective_config", "optimizer_config"]
)
@pytest.mark.parametrize(
    ("component", "message"),
    [
        ({"params": {"a": 1}}, "has params but no target"),
        ({"params": {}}, "has params but no target"),
        ({"params": None}, "has params but no target"),
        ({"Target": "torch.nn.Identity", "params": {}}, "has params but no target"),
        ({"betas": [0.5]}, "expected a mapping with a target, got keys betas"),
        ({}, "expected a mapping with a target, got keys nothing"),
    ],
)
def test_a_component_without_a_target_is_refused(key, component, message):
    params = {"unet_config": None, "first_stage_config": None, key: component}
    config = run_with(params, "ldm.models.diffusion.ddpm.LatentDiffusion")
    assert problems(config) == [f"model.params.{key}: {message}"]


@pytest.mark.parametrize("place", ["anything", "anything.0.weighting"])
def test_params_without_a_target_are_found_wherever_they_stand(place):
    key, *inner = place.split(".")
    value = {"params": {"gamma": 5.0}}
    for part in reversed(inner):
        value = [value] if part == "0" else {part: value}
    expected = f"model.params.{place}: has params but no target"
    assert problems(run_with({key: value})) == [expected]


def test_a_part_of_the_command_line_that_has_a_target_of_its_own_needs_none():
    check({"lightning": {"logger": {"params": {}}, "modelcheckpoint": {"params": {}}}})


def test_a_mapping_with_params_among_other_things_is_not_judged():
    check(run_with({"anything": {"name": "x", "params": {}}}))
