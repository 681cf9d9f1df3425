"""Adaptive projected guidance."""

import pytest
import torch

from ldm.diffusion.moment import Memory, moment_of_run
from ldm.diffusion.schedule import PublishedSchedule
from ldm.guidance.classifier_free import ClassifierFree
from ldm.guidance.contrast import with_x0
from ldm.guidance.interval import Interval
from ldm.guidance.projected import Projected
from ldm.samplers.ddim import DDIM
from ldm.types import Conditioning
from tests.guidance.wrappers import SCHEDULES, net

SCHEDULE = PublishedSchedule().double()
X = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
T = torch.tensor([10, 500, 999])
COND = Conditioning(vector=torch.tensor([0.5, -0.5, 1.0], dtype=torch.float64))
NULL = Conditioning(vector=torch.tensor([-1.0], dtype=torch.float64))
PLAIN = net(SCHEDULE)
SCALE = 5.0
GUIDED = ClassifierFree(PLAIN, SCALE, NULL)


def inner(a, b):
    return (a * b).sum(dim=(1, 2, 3))


def further(denoiser, x=X, t=T):
    """What guidance adds to the prediction with the condition."""
    return denoiser(x, t, COND).x0 - PLAIN(x, t, COND).x0


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("scale", [0, 1, 5.0, torch.tensor([0.0, 2.0, 7.0])])
def test_with_all_of_the_parallel_part_it_is_the_guidance_itself(schedule, scale):
    levels = torch.tensor([0.2, 0.6, 0.9], dtype=torch.float64)
    t = schedule.t_clean + levels * (schedule.t_max - schedule.t_clean)
    guided = ClassifierFree(net(schedule), scale, NULL)
    got, plain = Projected(guided, schedule, eta=1.0)(X, t, COND), guided(X, t, COND)
    torch.testing.assert_close(got.x0, plain.x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.eps, plain.eps, rtol=1e-9, atol=1e-9)


def test_a_scale_of_1_is_the_strong_prediction_for_one_pass_of_b():
    sizes = []

    def counting(x_t, t, cond):
        sizes.append(len(x_t))
        return PLAIN(x_t, t, cond)

    got = Projected(ClassifierFree(counting, 1, NULL), SCHEDULE)(X, T, COND)
    assert torch.equal(got.x0, PLAIN(X, T, COND).x0)
    assert sizes == [3]


def test_without_the_parallel_part_guidance_is_orthogonal_to_the_prediction():
    strong = PLAIN(X, T, COND).x0
    assert inner(further(GUIDED), strong).abs().min() > 0.1
    along = inner(further(Projected(GUIDED, SCHEDULE)), strong)
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-11)


def test_eta_weighs_the_parallel_part_alone():
    strong = PLAIN(X, T, COND).x0
    whole, none, half = (further(Projected(GUIDED, SCHEDULE, eta=eta)) for eta in (1, 0, 0.5))
    torch.testing.assert_close(half, (whole + none) / 2)
    parallel = whole - none
    cosine = (
        inner(parallel, strong).abs() / (inner(parallel, parallel) * inner(strong, strong)) ** 0.5
    )
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_the_threshold_limits_the_norm_of_each_image():
    norm = further(GUIDED).flatten(1).norm(dim=1) / (SCALE - 1)
    threshold = norm.median().item()
    limited = further(Projected(GUIDED, SCHEDULE, eta=1.0, threshold=threshold))
    got = limited.flatten(1).norm(dim=1) / (SCALE - 1)
    torch.testing.assert_close(got, norm.clamp(max=threshold))
    assert (got < norm - 1e-6).sum() == 1


def test_a_threshold_above_every_norm_changes_nothing():
    assert torch.equal(
        further(Projected(GUIDED, SCHEDULE, threshold=1e6)), further(Projected(GUIDED, SCHEDULE))
    )


class Steady:
    """x0 of 1 with the condition and 0.75 without it, whatever the state; difference 0.25."""

    def __call__(self, x_t, t, cond):
        x0 = torch.ones_like(x_t) * torch.where(cond.vector == -1, 0.75, 1.0)[:, None, None, None]
        return with_x0(PLAIN(x_t, t, cond), x0, SCHEDULE, t)


def predictions(denoiser, steps=4):
    used = []
    DDIM().sample(
        denoiser, X, schedule=SCHEDULE, steps=steps, cond=COND,
        callback=lambda step, x, prediction: used.append(prediction.x0),
    )  # fmt: skip
    return used


@pytest.mark.parametrize("momentum", [-0.5, 0.25])
def test_momentum_adds_up_the_differences_of_a_run(momentum):
    guided = ClassifierFree(Steady(), 3.0, NULL)
    denoiser = Projected(guided, SCHEDULE, eta=1.0, momentum=momentum)
    for i, x0 in enumerate(predictions(denoiser)):
        total = 0.25 * (1 - momentum ** (i + 1)) / (1 - momentum)
        torch.testing.assert_close(x0, torch.full_like(x0, 1 + 2 * total))


def test_every_run_begins_without_momentum():
    denoiser = Projected(GUIDED, SCHEDULE, momentum=-0.5)
    first, second = predictions(denoiser), predictions(denoiser)
    assert all(map(torch.equal, first, second))
    assert not torch.equal(first[1], predictions(Projected(GUIDED, SCHEDULE))[1])


def test_two_wrappers_in_one_run_have_their_own_momentum():
    def pair(denoiser):
        one, other = (Projected(denoiser, SCHEDULE, momentum=-0.5) for _ in range(2))
        return lambda x_t, t, cond: (one(x_t, t, cond), other(x_t, t, cond))[1]

    together = predictions(pair(GUIDED))
    assert all(map(torch.equal, together, predictions(Projected(GUIDED, SCHEDULE, momentum=-0.5))))


def test_a_call_outside_of_a_run_has_no_momentum():
    denoiser = Projected(GUIDED, SCHEDULE, momentum=-0.5)
    assert torch.equal(further(denoiser), further(denoiser))
    assert torch.equal(further(denoiser), further(Projected(GUIDED, SCHEDULE)))


def test_what_a_run_keeps_carries_no_graph():
    memory = Memory()
    denoiser = Projected(GUIDED, SCHEDULE, momentum=-0.5)
    with moment_of_run(999.0, memory):
        denoiser(X, T, COND)  # gradients are on, and the network has parameters
    assert not memory.recall(denoiser).requires_grad


def test_on_a_prediction_of_zeros_nothing_projects():
    def zeros(x_t, t, cond):
        x0 = (cond.vector == -1)[:, None, None, None] * torch.ones_like(x_t)  # 1 without condition
        return with_x0(PLAIN(x_t, t, cond), x0, SCHEDULE, t)

    got = Projected(ClassifierFree(zeros, SCALE, NULL), SCHEDULE)(X, T, COND)
    torch.testing.assert_close(got.x0, torch.full_like(X, 1 - SCALE))


def test_a_difference_of_zeros_has_a_norm_within_every_threshold():
    same = ClassifierFree(lambda x_t, t, cond: PLAIN(x_t, t, None), SCALE, NULL)
    for threshold in (1e-3, float("inf")):
        got = Projected(same, SCHEDULE, threshold=threshold)(X, T, COND)
        assert torch.equal(got.x0, PLAIN(X, T, None).x0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0}, "threshold is 0, expected a number above 0"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"momentum": -1}, "momentum is -1, expected above -1 and below 1"),
        ({"momentum": 1.0}, "momentum is 1.0"),
    ],
)
def test_numbers_outside_of_their_ranges_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Projected(GUIDED, SCHEDULE, **options)


def test_what_has_no_weak_prediction_is_refused():
    with pytest.raises(ValueError, match="right around ClassifierFree or Autoguided, got Interval"):
        Projected(Interval(GUIDED, PLAIN, SCHEDULE), SCHEDULE)
