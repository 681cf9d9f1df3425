"""What a network may predict: round trips, targets, conversions, singular ends."""

import pytest
import torch

from ldm.diffusion.parameterization import (
    PARAMETERIZATIONS,
    check_parameterization,
    from_prediction,
    target,
    to_prediction,
    x0_error_gain,
)
from ldm.diffusion.schedule import PublishedSchedule, RectifiedFlow
from ldm.types import Prediction

NAMES = list(PARAMETERIZATIONS)


@pytest.fixture(scope="module")
def process():
    """x0, eps, x_t, alpha, sigma in float64, one example per time of the published schedule."""
    schedule = PublishedSchedule().double()
    alpha, sigma = schedule.coefficients(torch.arange(1000))
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 1000, 1, 2, 2, generator=generator, dtype=torch.float64)
    x_t = alpha[:, None, None, None] * x0 + sigma[:, None, None, None] * eps
    return x0, eps, x_t, alpha, sigma


@pytest.mark.parametrize("name", NAMES)
def test_prediction_of_a_perfect_output_is_the_truth(name, process):
    x0, eps, x_t, alpha, sigma = process
    prediction = to_prediction(name, target(name, x0, eps, alpha, sigma), x_t, alpha, sigma)
    # det is alpha for eps, 0.006 at the noisiest time, and sigma for x0
    torch.testing.assert_close(prediction.x0, x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(prediction.eps, eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_any_output_survives_the_round_trip_and_agrees_with_x_t(name, process):
    _, _, x_t, alpha, sigma = process
    out = torch.randn_like(x_t)
    prediction = to_prediction(name, out, x_t, alpha, sigma)
    back = from_prediction(name, prediction, alpha, sigma)
    torch.testing.assert_close(back, out, rtol=0, atol=1e-12)
    again = alpha[:, None, None, None] * prediction.x0 + sigma[:, None, None, None] * prediction.eps
    torch.testing.assert_close(again, x_t, rtol=0, atol=1e-12)


@pytest.mark.parametrize("source", NAMES)
@pytest.mark.parametrize("goal", NAMES)
def test_outputs_convert_between_any_pair(source, goal, process):
    x0, eps, x_t, alpha, sigma = process
    prediction = to_prediction(source, target(source, x0, eps, alpha, sigma), x_t, alpha, sigma)
    converted = from_prediction(goal, prediction, alpha, sigma)
    torch.testing.assert_close(converted, target(goal, x0, eps, alpha, sigma), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_x0_error_gain_is_the_ratio_of_squared_errors(name, process):
    _, _, x_t, alpha, sigma = process
    out, error = torch.randn_like(x_t), torch.randn_like(x_t)
    moved = to_prediction(name, out + error, x_t, alpha, sigma).x0
    difference = moved - to_prediction(name, out, x_t, alpha, sigma).x0
    ratio = difference.square().flatten(1).mean(1) / error.square().flatten(1).mean(1)
    torch.testing.assert_close(x0_error_gain(name, alpha, sigma), ratio, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["v", "flow", "x0"])
def test_prediction_recovers_x0_when_alpha_vanishes(name):
    x0, eps = torch.randn(2, 4, 1, 2, 2)
    alpha, sigma = torch.zeros(4), torch.ones(4)
    prediction = to_prediction(name, target(name, x0, eps, alpha, sigma), eps, alpha, sigma)
    torch.testing.assert_close(prediction.x0, x0)
    torch.testing.assert_close(prediction.eps, eps)


@pytest.mark.parametrize("name", ["eps", "v", "flow"])
def test_prediction_recovers_eps_when_sigma_vanishes(name):
    x0, eps = torch.randn(2, 4, 1, 2, 2)
    alpha, sigma = torch.ones(4), torch.zeros(4)
    prediction = to_prediction(name, target(name, x0, eps, alpha, sigma), x0, alpha, sigma)
    torch.testing.assert_close(prediction.x0, x0)
    torch.testing.assert_close(prediction.eps, eps)


def test_v_is_the_velocity_of_the_rotation_and_flow_that_of_straight_paths():
    x0, eps = torch.randn(2, 1, 1, 2, 2, dtype=torch.float64)
    angle = torch.tensor([0.3], dtype=torch.float64)
    step = 1e-6

    def on_circle(phi):
        return phi.cos() * x0 + phi.sin() * eps

    v = (on_circle(angle + step) - on_circle(angle - step)) / (2 * step)
    torch.testing.assert_close(target("v", x0, eps, angle.cos(), angle.sin()), v)

    flow = RectifiedFlow()
    t = torch.tensor([0.3], dtype=torch.float64)
    velocity = (flow.noised(x0, eps, t + step) - flow.noised(x0, eps, t - step)) / (2 * step)
    torch.testing.assert_close(target("flow", x0, eps, *flow.coefficients(t)), velocity)


@pytest.mark.parametrize("name", NAMES)
def test_a_half_precision_output_gives_a_prediction_in_the_type_of_x_t(name):
    x_t = torch.randn(2, 1, 2, 2)
    level = torch.full((2,), 0.5**0.5)
    prediction = to_prediction(name, x_t.bfloat16(), x_t, level, level)
    assert prediction.x0.dtype == prediction.eps.dtype == torch.float32


def test_eps_is_passed_through_untouched():
    out = torch.randn(2, 1, 2, 2)
    level = torch.full((2,), 0.6)
    assert to_prediction("eps", out, out, level, level).eps is out
    assert to_prediction("x0", out, out, level, level).x0 is out
    assert isinstance(to_prediction("v", out, out, level, level), Prediction)


@pytest.mark.parametrize(("wrong", "right"), [("epsilon", "eps"), ("flows", "flow"), ("x_0", "x0")])
def test_a_misspelt_parameterization_names_the_nearest(wrong, right):
    with pytest.raises(ValueError, match=f"did you mean '{right}'"):
        check_parameterization(wrong)
