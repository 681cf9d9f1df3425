"""The training objective: its terms, its optimum, its randomness."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ldm.diffusion.denoiser import NetDenoiser
from ldm.diffusion.draws import GeneratorDraws, KeyedDraws
from ldm.diffusion.objective import NORMS, Objective
from ldm.diffusion.parameterization import PARAMETERIZATIONS, target
from ldm.diffusion.schedule import PublishedSchedule, RectifiedFlow
from ldm.diffusion.times import LossAware, Uniform
from ldm.diffusion.weighting import Elbo, MinSNR

SCHEDULE = PublishedSchedule(50, linear_start=0.01, linear_end=0.1).double()
X0 = torch.randn(6, 2, 3, 3, dtype=torch.float64)
EPS = torch.randn_like(X0)
T = torch.tensor([0, 1, 10, 20, 40, 49])


class Constant(nn.Module):
    """A network that returns one number; its gradient shows what the loss pulls at."""

    def __init__(self, value=0.0):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))

    def forward(self, x, t, cond):
        return self.value.expand_as(x)


def denoiser(parameterization="eps", value=0.0, schedule=SCHEDULE):
    return NetDenoiser(Constant(value), schedule, parameterization)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_error_is_the_mean_norm_of_output_minus_target(norm, parameterization):
    objective = Objective(parameterization, norm, delta=0.5)
    terms = objective.at(denoiser(parameterization, 0.2), X0, None, t=T, eps=EPS)
    want = target(parameterization, X0, EPS, *SCHEDULE.coefficients(T))
    error = (0.2 - want).abs()
    elementwise = {
        "l1": error,
        "l2": error**2,
        "huber": torch.where(error < 0.5, error**2, error - 0.25),
    }[norm]
    torch.testing.assert_close(terms.parts["loss_simple"], elementwise.flatten(1).mean(1))
    torch.testing.assert_close(terms.total, terms.parts["loss_simple"])


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_a_perfect_network_has_no_loss(parameterization):
    class Perfect(nn.Module):
        def forward(self, x, t, cond):
            return target(parameterization, X0, EPS, *SCHEDULE.coefficients(T))

    perfect = NetDenoiser(Perfect(), SCHEDULE, parameterization)
    terms = Objective(parameterization).at(perfect, X0, None, t=T, eps=EPS)
    assert terms.total.abs().max() == 0


def test_terms_are_put_together_as_documented():
    logvar = torch.linspace(-1, 1, 50, dtype=torch.float64, requires_grad=True)
    objective = Objective(weighting=MinSNR(), simple_weight=0.9, elbo_weight=0.01)
    terms = objective.at(denoiser(value=0.2), X0, None, t=T, eps=EPS, logvar=logvar)
    error = (0.2 - EPS).square().flatten(1).mean(1)
    gamma = error * MinSNR()(SCHEDULE, T, "eps") / logvar[T].exp() + logvar[T]
    vlb = error * Elbo()(SCHEDULE, T, "eps")
    assert set(terms.parts) == {"loss_simple", "loss_gamma", "loss_vlb"}
    torch.testing.assert_close(terms.parts["loss_simple"], error)
    torch.testing.assert_close(terms.parts["loss_gamma"], gamma)
    torch.testing.assert_close(terms.parts["loss_vlb"], vlb)
    torch.testing.assert_close(terms.total, 0.9 * gamma + 0.01 * vlb)


def test_loss_gamma_is_logged_only_when_logvar_is_learned():
    terms = Objective().at(denoiser(), X0, None, t=T, eps=EPS, logvar=torch.zeros(50).double())
    assert set(terms.parts) == {"loss_simple", "loss_vlb"}


def test_learned_logvar_settles_at_the_log_of_the_error():
    logvar = torch.zeros(50, dtype=torch.float64, requires_grad=True)
    terms = Objective().at(denoiser(), X0, None, t=T, eps=EPS, logvar=logvar)
    error = terms.parts["loss_simple"].detach()
    with torch.no_grad():
        logvar[T] = error.log()
    Objective().at(denoiser(), X0, None, t=T, eps=EPS, logvar=logvar).total.sum().backward()
    torch.testing.assert_close(logvar.grad, torch.zeros_like(logvar))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_two_parameters_reach_the_closed_form_optimum(parameterization, norm):
    """A network linear in x_t at one time learns E[target | x_t] of Gaussian data."""
    mean, std, time = 0.4, 0.6, 12
    schedule = SCHEDULE
    alpha, sigma = (level.item() for level in schedule.coefficients(torch.tensor([time])))
    a, b = (
        float(c)
        for c in PARAMETERIZATIONS[parameterization](torch.tensor(alpha), torch.tensor(sigma))
    )
    # covariance of target and x_t over variance of x_t, both zero-mean Gaussians around their means
    slope = (a * alpha * std**2 + b * sigma) / (alpha**2 * std**2 + sigma**2)
    offset = a * mean - slope * alpha * mean

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, x, t, cond):
            return self.weights[0] * x + self.weights[1]

    # quantiles of two independent normals in place of random numbers
    quantiles = torch.special.ndtri((torch.arange(60, dtype=torch.float64) + 0.5) / 60)
    x0, eps = torch.meshgrid(mean + std * quantiles, quantiles, indexing="ij")
    x0, eps = (v.reshape(1, 1, 1, -1) for v in (x0, eps))
    net = Linear()
    objective = Objective(parameterization, norm, delta=0.5)
    optimizer = torch.optim.LBFGS(
        net.parameters(), max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        terms = objective.at(
            NetDenoiser(net, schedule, parameterization), x0, None, t=torch.tensor([time]), eps=eps
        )
        terms.total.sum().backward()
        return terms.total.sum().detach()

    optimizer.step(loss)
    # 60 quantiles cut the tails: their second moment is 1.5 % below 1, the same for x0 and eps
    np.testing.assert_allclose(net.weights.detach(), [slope, offset], rtol=0.02, atol=0.02)


def test_a_batch_gives_each_example_the_loss_it_has_alone():
    keys = [5, 9, 2, 7]
    x0 = torch.randn(4, 2, 3, 3)
    net = denoiser(value=0.1, schedule=PublishedSchedule())
    together = Objective()(net, x0, None, draws=KeyedDraws(keys, seed=1))
    for i, key in enumerate(keys):
        alone = Objective()(net, x0[i : i + 1], None, draws=KeyedDraws([key], seed=1))
        assert torch.equal(alone.total[0], together.total[i])
        assert torch.equal(alone.parts["loss_vlb"][0], together.parts["loss_vlb"][i])


def test_call_is_at_with_drawn_time_and_noise():
    keys, x0 = [1, 2, 3], torch.randn(3, 2, 3, 3)
    net = denoiser(value=0.1, schedule=PublishedSchedule())
    draws = KeyedDraws(keys, seed=4)
    t, _ = Uniform().sample(draws.uniform("t"), net.schedule)
    want = Objective().at(net, x0, None, t=t, eps=draws.normal((2, 3, 3), "eps"))
    assert torch.equal(Objective()(net, x0, None, draws=draws).total, want.total)


def test_loss_aware_times_leave_the_mean_loss_unchanged():
    schedule, aware = PublishedSchedule(10, linear_start=0.05, linear_end=0.9), LossAware(10)
    objective = Objective("x0", weighting=MinSNR(), times=aware)
    # with x0 = 0 and an output of 1 the loss of a time is its weight
    net, x0 = NetDenoiser(Constant(1.0).float(), schedule, "x0"), torch.zeros(4000, 1, 1, 1)
    draws = GeneratorDraws(torch.Generator().manual_seed(0), len(x0))
    objective(net, x0, None, draws=draws)
    assert aware.counts.sum() == len(x0)

    aware.eval()
    terms = objective(net, x0, None, draws=draws)
    assert aware.counts.sum() == len(x0)
    weights = MinSNR()(schedule, torch.arange(10), "x0")
    # drawn in proportion to the loss, every example estimates the mean loss nearly without error
    torch.testing.assert_close(terms.total.mean(), weights.mean(), rtol=0.01, atol=0)
    assert terms.total.std() < 0.05 * weights.std()
    simple = terms.parts["loss_simple"]
    assert abs(simple.mean() - 1) < 4 * simple.std() / math.sqrt(len(x0))


def test_a_bound_asked_of_a_continuous_schedule_is_refused():
    net = denoiser("v", schedule=RectifiedFlow())
    t = torch.rand(6, dtype=torch.float64)
    assert set(Objective("v").at(net, X0, None, t=t, eps=EPS).parts) == {"loss_simple"}
    with pytest.raises(ValueError, match="integer times"):
        Objective("v", elbo_weight=0.1).at(net, X0, None, t=t, eps=EPS)


def test_a_weight_without_its_term_is_refused():
    with pytest.raises(ValueError, match="elbo is None"):
        Objective(elbo_weight=0.1, elbo=None)


def test_objective_and_denoiser_must_agree_on_what_is_predicted():
    with pytest.raises(ValueError, match="'v', the denoiser predicts 'eps'"):
        Objective("v").at(denoiser("eps"), X0, None, t=T, eps=EPS)


@pytest.mark.parametrize(("wrong", "right"), [("L1", "l1"), ("huberr", "huber"), ("l22", "l2")])
def test_a_misspelt_norm_names_the_nearest(wrong, right):
    with pytest.raises(ValueError, match=f"did you mean '{right}'"):
        Objective(norm=wrong)


def test_errors_are_float32_under_autocast():
    net = nn.Conv2d(2, 2, 1)
    half = NetDenoiser(_Adapted(net), PublishedSchedule())
    with torch.autocast("cpu", torch.bfloat16):
        terms = Objective().at(half, X0.float(), None, t=T, eps=EPS.float())
    assert terms.total.dtype == torch.float32
    assert all(part.dtype == torch.float32 for part in terms.parts.values())


class _Adapted(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t, cond):
        return self.net(x)
