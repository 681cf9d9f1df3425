"""Autoguidance: a model and a bad version of itself."""

import pytest
import torch

from ldm.diffusion.schedule import PublishedSchedule, RectifiedFlow
from ldm.guidance.autoguidance import Autoguided
from ldm.guidance.classifier_free import ClassifierFree
from ldm.samplers.dpm import DPMSolver
from ldm.types import Conditioning
from tests.gaussian import GaussianDenoiser
from tests.guidance.wrappers import net

SCHEDULE = PublishedSchedule().double()
MAIN = GaussianDenoiser(SCHEDULE, mean=0.7, std=0.5)
WEAK = GaussianDenoiser(SCHEDULE, mean=0.4, std=0.8)
X = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
T = torch.tensor([1, 500, 999])
COND = Conditioning(vector=torch.tensor([0.5, -0.5, 1.0], dtype=torch.float64))


def assert_same(got, expected):
    torch.testing.assert_close(got.x0, expected.x0)
    torch.testing.assert_close(got.eps, expected.eps)


@pytest.mark.parametrize("scale", [0, 0.5, 1, 3.0])
def test_a_model_guided_by_itself_is_itself(scale):
    assert_same(Autoguided(MAIN, MAIN, scale)(X, T, None), MAIN(X, T, None))


@pytest.mark.parametrize(("scale", "used", "unused"), [(1, MAIN, WEAK), (0.0, WEAK, MAIN)])
def test_the_ends_of_the_scale_are_one_model_alone(scale, used, unused):
    before = unused.evaluations
    got = Autoguided(MAIN, WEAK, scale)(X, T, None)
    assert torch.equal(got.x0, used(X, T, None).x0)
    assert unused.evaluations == before


@pytest.mark.parametrize("scale", [-1.0, 0.3, 2.0])
def test_guidance_is_linear_in_the_scale(scale):
    got, main, weak = Autoguided(MAIN, WEAK, scale)(X, T, None), MAIN(X, T, None), WEAK(X, T, None)
    torch.testing.assert_close(got.x0, weak.x0 + scale * (main.x0 - weak.x0))
    torch.testing.assert_close(got.eps, weak.eps + scale * (main.eps - weak.eps))


def test_each_example_may_have_its_own_scale():
    scales = torch.tensor([1.0, 2.0, 0.5])
    got = Autoguided(MAIN, WEAK, scales)(X, T, None)
    for i, scale in enumerate(scales.tolist()):
        alone = Autoguided(MAIN, WEAK, scale)(X, T, None)
        torch.testing.assert_close(got.x0[i], alone.x0[i])


def test_the_two_models_may_predict_different_things():
    flow = RectifiedFlow()
    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    main, weak = net(flow, "flow"), net(flow, "x0", seed=1)
    got = Autoguided(main, weak, 2.0)(X, t, None)
    torch.testing.assert_close(got.x0, 2 * main(X, t, None).x0 - weak(X, t, None).x0)


def test_guidance_by_the_condition_and_by_a_weak_model_may_be_nested_either_way():
    # all of it is linear, so the orders differ in cost alone
    main, weak = net(SCHEDULE), net(SCHEDULE, seed=1)
    null = Conditioning(vector=torch.tensor([-1.0], dtype=torch.float64))
    inside = ClassifierFree(Autoguided(main, weak, 1.5), 3.0, null)
    outside = Autoguided(ClassifierFree(main, 3.0, null), ClassifierFree(weak, 3.0, null), 1.5)
    assert_same(inside(X, T, COND), outside(X, T, COND))


def test_a_weak_model_without_condition_is_both_guidances_in_one():
    main, weak = net(SCHEDULE), net(SCHEDULE, seed=1)
    null = Conditioning(vector=torch.tensor([-1.0, -1.0, -1.0], dtype=torch.float64))
    got = Autoguided(main, lambda x_t, t, cond: weak(x_t, t, null), 2.0)(X, T, COND)
    torch.testing.assert_close(got.x0, 2 * main(X, T, COND).x0 - weak(X, T, null).x0)


def test_guidance_by_a_wider_model_draws_narrower_data():
    x = torch.randn(2000, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def spread(denoiser):
        return DPMSolver().sample(denoiser, x, schedule=SCHEDULE, steps=20).std().item()

    weak = GaussianDenoiser(SCHEDULE, mean=0.7, std=0.8)
    assert spread(MAIN) == pytest.approx(0.5, abs=0.02)
    assert spread(Autoguided(MAIN, weak, 2.0)) < 0.4
