"""Rescaling guidance to the deviation of what it was guided from."""

import pytest
import torch

from ldm.diffusion.parameterization import PARAMETERIZATIONS, from_prediction
from ldm.diffusion.schedule import PublishedSchedule, RectifiedFlow
from ldm.guidance.autoguidance import Autoguided
from ldm.guidance.classifier_free import ClassifierFree
from ldm.guidance.interval import Interval
from ldm.guidance.projected import Projected
from ldm.guidance.rescaled import Rescaled
from ldm.types import Conditioning
from tests.guidance.wrappers import SCHEDULES, net

SCHEDULE = PublishedSchedule().double()
X = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
T = torch.tensor([10, 500, 999])
COND = Conditioning(vector=torch.tensor([0.5, -0.5, 1.0], dtype=torch.float64))
NULL = Conditioning(vector=torch.tensor([-1.0], dtype=torch.float64))
PLAIN = net(SCHEDULE)
GUIDED = ClassifierFree(PLAIN, 5.0, NULL)


def deviation(prediction, name="v", schedule=SCHEDULE, t=T):
    return from_prediction(name, prediction, *schedule.coefficients(t)).std(dim=(1, 2, 3))


def test_phi_0_is_the_guidance_itself():
    got = Rescaled(GUIDED, SCHEDULE, 0)(X, T, COND)
    assert torch.equal(got.x0, GUIDED(X, T, COND).x0)
    assert torch.equal(got.eps, GUIDED(X, T, COND).eps)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_phi_1_has_the_deviation_of_the_condition_alone(name, schedule):
    if name == "eps" and schedule.ends_in_pure_noise:
        return
    levels = torch.tensor([0.2, 0.6, 0.9], dtype=torch.float64)
    t = schedule.t_clean + levels * (schedule.t_max - schedule.t_clean)
    plain = net(schedule)
    got = Rescaled(ClassifierFree(plain, 5.0, NULL), schedule, 1, name)(X, t, COND)
    wanted = deviation(plain(X, t, COND), name, schedule, t)
    torch.testing.assert_close(deviation(got, name, schedule, t), wanted, rtol=1e-9, atol=0)


def test_the_deviation_is_linear_in_phi():
    without, whole = (deviation(Rescaled(GUIDED, SCHEDULE, phi)(X, T, COND)) for phi in (0, 1))
    assert (without - whole).abs().min() > 1e-3
    half = deviation(Rescaled(GUIDED, SCHEDULE, 0.5)(X, T, COND))
    torch.testing.assert_close(half, (without + whole) / 2)


def test_the_result_is_a_multiple_of_the_guided_output():
    got, plain = (
        from_prediction("v", d(X, T, COND), *SCHEDULE.coefficients(T))
        for d in (Rescaled(GUIDED, SCHEDULE), GUIDED)
    )
    ratio = (got / plain).flatten(1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))


def test_without_guidance_nothing_is_rescaled():
    got = Rescaled(ClassifierFree(PLAIN, 1.0, NULL), SCHEDULE, 1)(X, T, COND)
    assert torch.equal(got.x0, PLAIN(X, T, COND).x0)


def test_rescaling_costs_no_further_pass():
    sizes = []

    def counting(x_t, t, cond):
        sizes.append(len(x_t))
        return PLAIN(x_t, t, cond)

    Rescaled(Projected(ClassifierFree(counting, 5.0, NULL), SCHEDULE), SCHEDULE)(X, T, COND)
    assert sizes == [6]


@pytest.mark.parametrize(
    "guidance",
    [GUIDED, Autoguided(PLAIN, net(SCHEDULE, seed=1), 3.0), Projected(GUIDED, SCHEDULE)],
)
def test_whatever_guides_is_rescaled_to_its_strong_prediction(guidance):
    got = Rescaled(guidance, SCHEDULE, 1)(X, T, COND)
    torch.testing.assert_close(deviation(got), deviation(PLAIN(X, T, COND)))


def test_a_constant_output_stays_finite():
    def flat(x_t, t, cond):
        # v = alpha eps - sigma x0 is 0
        alpha, sigma = (level[:, None, None, None] for level in SCHEDULE.coefficients(t))
        return type(PLAIN(X, T, COND))(x0=alpha * x_t, eps=sigma * x_t)

    got = Rescaled(ClassifierFree(flat, 5.0, NULL), SCHEDULE, 1)(X, T, COND)
    torch.testing.assert_close(got.x0, flat(X, T, COND).x0)


@pytest.mark.parametrize("phi", [-0.1, 1.1, float("nan")])
def test_a_phi_outside_of_its_range_is_refused(phi):
    with pytest.raises(ValueError, match=f"phi is {phi}, expected 0 to 1"):
        Rescaled(GUIDED, SCHEDULE, phi)


def test_what_is_not_guided_is_refused_with_the_order_to_follow():
    with pytest.raises(ValueError, match=r"got Interval: put Interval inside .* around Rescaled"):
        Rescaled(Interval(GUIDED, PLAIN, SCHEDULE), SCHEDULE)


def test_eps_of_pure_noise_is_refused():
    with pytest.raises(ValueError, match="RectifiedFlow ends in pure noise"):
        Rescaled(GUIDED, RectifiedFlow(), parameterization="eps")


def test_a_misspelt_parameterization_is_refused():
    with pytest.raises(ValueError, match="parameterization"):
        Rescaled(GUIDED, SCHEDULE, parameterization="epsilon")
