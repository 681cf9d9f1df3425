"""Optimizers, learning rates, clipping."""

import pytest
import torch
from torch import nn

from ldm.config import ConfigError
from ldm.lr_scheduler import LambdaLinearScheduler
from ldm.models.optim import (
    average_gradients,
    build_optimizer,
    build_schedule,
    clip_gradients,
    scaled_learning_rate,
)

ADAM = {"target": "torch.optim.Adam", "params": {"betas": [0.5, 0.9]}}


def with_gradients(*values):
    parameters = [nn.Parameter(torch.zeros_like(torch.tensor(value))) for value in values]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.grad = torch.tensor(value)
    return parameters


def test_optimizer_is_the_fused_one_its_configuration_names():
    optimizer = build_optimizer(nn.Linear(2, 2).parameters(), 1e-3, ADAM)
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.defaults["lr"] == 1e-3
    assert tuple(optimizer.defaults["betas"]) == (0.5, 0.9)
    assert optimizer.defaults["fused"]


def test_another_implementation_of_an_optimizer_can_be_had():
    weights = nn.Linear(2, 2).parameters()
    config = {"target": "torch.optim.AdamW", "params": {"foreach": True}}
    assert not build_optimizer(weights, 1e-3, config).defaults["fused"]
    assert not build_optimizer(nn.Linear(2, 2).parameters(), 1e-3, ADAM, fused=False).defaults[
        "fused"
    ]


def test_optimizer_leaves_frozen_parameters_out():
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    optimizer = build_optimizer(layer.parameters(), 1e-3, ADAM)
    assert optimizer.param_groups[0]["params"] == [layer.weight]


def test_optimizer_without_a_fused_form_is_built_plainly():
    config = {"target": "torch.optim.RMSprop"}
    assert "fused" not in build_optimizer(nn.Linear(1, 1).parameters(), 0.1, config).defaults


def test_misspelt_optimizer_parameter_is_an_error_with_its_path():
    config = {"target": "torch.optim.AdamW", "params": {"weight_decai": 0.1}}
    with pytest.raises(ConfigError, match=r"optimizer_config.*weight_decai.*weight_decay"):
        build_optimizer(nn.Linear(1, 1).parameters(), 0.1, config)


def test_a_rate_beside_the_one_that_is_printed_is_an_error():
    config = {"target": "torch.optim.AdamW", "params": {"lr": 0.1}}
    with pytest.raises(ConfigError, match=r"optimizer_config.params.lr: 0.1; .*learning_rate"):
        build_optimizer(nn.Linear(1, 1).parameters(), 0.2, config)


def test_target_that_is_no_optimizer_is_an_error():
    with pytest.raises(ConfigError, match="optimizer"):
        build_optimizer(nn.Linear(1, 1).parameters(), 0.1, {"target": "torch.nn.Identity"})


def test_schedule_multiplies_the_rate_at_each_step():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=2.0)
    factor = LambdaLinearScheduler([4], [0.5], [1.0], [0.0], [8])
    schedule = build_schedule(optimizer, factor)
    assert schedule["interval"] == "step"
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule["scheduler"].step()
    assert rates == pytest.approx([2 * factor(step) for step in range(6)])


def test_scaled_rate_is_explained_by_its_equation():
    rate, equation = scaled_learning_rate(4.5e-6, batch_size=12, devices=1, accumulate=2)
    assert rate == pytest.approx(1.08e-4)
    assert equation == (
        "lr = 2 (accumulate_grad_batches) x 1 (devices) x 12 (batch_size) x "
        "4.5e-06 (base_learning_rate) = 0.000108"
    )


def test_clipping_by_norm_keeps_the_direction():
    parameters = with_gradients([3.0, 0.0], [4.0])
    clip_gradients(parameters, 1.0)
    # clip_grad_norm_ divides by the norm plus 1e-6
    torch.testing.assert_close(parameters[0].grad, torch.tensor([0.6, 0.0]), rtol=1e-5, atol=0)
    torch.testing.assert_close(parameters[1].grad, torch.tensor([0.8]), rtol=1e-5, atol=0)


def test_clipping_by_value_limits_each_element():
    parameters = with_gradients([3.0, -0.5])
    clip_gradients(parameters, 1.0, "value")
    assert torch.equal(parameters[0].grad, torch.tensor([1.0, -0.5]))


@pytest.mark.parametrize("value", [None, 0])
def test_no_clipping_leaves_gradients(value):
    parameters = with_gradients([3.0, -0.5])
    clip_gradients(parameters, value)
    assert torch.equal(parameters[0].grad, torch.tensor([3.0, -0.5]))


def test_unknown_clipping_algorithm_is_an_error():
    with pytest.raises(ConfigError, match="gradient_clip_algorithm='max'"):
        clip_gradients(with_gradients([1.0]), 1.0, "max")


def test_clipping_to_less_than_nothing_is_an_error():
    with pytest.raises(ConfigError, match="gradient_clip_val=-1"):
        clip_gradients(with_gradients([3.0, 4.0]), -1)


def test_average_over_one_rank_is_the_gradient():
    parameters = with_gradients([3.0, -0.5])
    average_gradients(parameters)
    assert torch.equal(parameters[0].grad, torch.tensor([3.0, -0.5]))
