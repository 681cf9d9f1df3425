"""Corrections of a prediction: limits, codes, a changed eps."""

import pytest
import torch

from ldm.diffusion.schedule import PublishedSchedule, RectifiedFlow
from ldm.guidance.correction import Clipped, Corrected, Quantized, Thresholded
from ldm.tensor import expand_to
from tests.gaussian import GaussianDenoiser

SCHEDULE = PublishedSchedule().double()
INNER = GaussianDenoiser(SCHEDULE, mean=0.8, std=0.5)
X = 2 * torch.randn(4, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0, 10, 500, 999])


def again(prediction):
    """x_t that a prediction implies."""
    alpha, sigma = (expand_to(level, X) for level in SCHEDULE.coefficients(T))
    return alpha * prediction.x0 + sigma * prediction.eps


def test_clipping_limits_x0_and_keeps_the_prediction_consistent():
    prediction = Clipped(INNER, SCHEDULE)(X, T, None)
    assert torch.equal(prediction.x0, INNER(X, T, None).x0.clamp(-1, 1))
    torch.testing.assert_close(again(prediction), X)


def test_clipping_inside_the_limits_changes_nothing():
    prediction = Clipped(INNER, SCHEDULE, low=-100, high=100)(X, T, None)
    plain = INNER(X, T, None)
    # eps is found again by a division by sigma, 0.01 at time 0
    torch.testing.assert_close(prediction.eps, plain.eps, rtol=0, atol=1e-12)


def test_quantizing_replaces_x0_and_keeps_eps():
    prediction = Quantized(INNER, torch.round)(X, T, None)
    plain = INNER(X, T, None)
    assert torch.equal(prediction.x0, plain.x0.round())
    assert torch.equal(prediction.eps, plain.eps)


def test_a_corrected_eps_comes_with_its_x0():
    prediction = Corrected(INNER, SCHEDULE, lambda eps, x, t, cond: 0.9 * eps + 0.01 * x)(
        X, T, None
    )
    torch.testing.assert_close(prediction.eps, 0.9 * INNER(X, T, None).eps + 0.01 * X)
    torch.testing.assert_close(again(prediction), X)


def test_a_corrector_may_take_gradients_inside_a_sampler():
    def towards_larger_values(eps, x_t, t, cond):
        x = x_t.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(x.square().sum() / 2, x)
        return eps - gradient + 0 * x  # carries a graph

    with torch.no_grad():
        prediction = Corrected(INNER, SCHEDULE, towards_larger_values)(X, T, None)
    torch.testing.assert_close(prediction.eps, INNER(X, T, None).eps - X)
    assert not prediction.x0.requires_grad
    assert not prediction.eps.requires_grad


@pytest.mark.parametrize("schedule", [RectifiedFlow(), PublishedSchedule(zero_terminal_snr=True)])
def test_eps_is_not_corrected_where_a_schedule_ends_in_pure_noise(schedule):
    with pytest.raises(ValueError, match="ends in pure noise"):
        Corrected(INNER, schedule, lambda eps, x, t, cond: eps)


def test_a_range_within_the_limit_is_not_changed():
    prediction = Thresholded(INNER, SCHEDULE, percentile=1, limit=100)(X, T, None)
    assert torch.equal(prediction.x0, INNER(X, T, None).x0)
    assert torch.equal(prediction.eps, INNER(X, T, None).eps)


def test_the_largest_value_is_scaled_to_the_limit():
    plain = INNER(X, T, None).x0
    prediction = Thresholded(INNER, SCHEDULE, percentile=1, limit=0.5)(X, T, None)
    largest = plain.abs().amax(dim=(1, 2, 3), keepdim=True)
    assert (largest > 0.5).all()
    torch.testing.assert_close(prediction.x0, plain * 0.5 / largest)
    torch.testing.assert_close(again(prediction), X)


@pytest.mark.parametrize("percentile", [0.01, 0.5, 0.9, 1])
def test_a_percentile_is_that_of_each_image(percentile):
    plain = INNER(X, T, None).x0
    prediction = Thresholded(INNER, SCHEDULE, percentile, limit=0.01)(X, T, None)
    bound = torch.quantile(plain.abs().flatten(1), percentile, dim=1).clamp(min=0.01)
    bound = bound[:, None, None, None]
    torch.testing.assert_close(prediction.x0, plain.clamp(-bound, bound) * 0.01 / bound)
    torch.testing.assert_close(again(prediction), X)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"percentile": 0.0}, "percentile is 0.0, expected above 0 and at most 1"),
        ({"percentile": 99.5}, "percentile is 99.5, expected above 0 and at most 1"),
        ({"limit": 0}, "limit is 0, expected a number above 0"),
    ],
)
def test_a_threshold_outside_of_its_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Thresholded(INNER, SCHEDULE, **options)
