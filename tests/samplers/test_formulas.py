"""Samplers against the formulas of their papers, in the EDM variables y and k."""

from dataclasses import replace
from itertools import pairwise
from math import exp, expm1, inf, log, sqrt

import numpy as np
import pytest
import torch

from ldm.diffusion.draws import KeyedDraws
from ldm.diffusion.schedule import PublishedSchedule, RectifiedFlow, VarianceExploding
from ldm.samplers.ddim import DDIM
from ldm.samplers.dpm import DPMSolver, DPMSolverSDE, DPMSolverSinglestep
from ldm.samplers.euler import Euler, EulerAncestral
from ldm.samplers.grid import Explicit, Karras, LogSNR, Uniform
from ldm.samplers.heun import Heun
from ldm.samplers.multistep import curve_weights, moments
from ldm.samplers.unipc import UniPC
from tests.gaussian import GaussianDenoiser
from tests.mixture import MixtureDenoiser

VE = VarianceExploding(0.01, 20.0)  # of which x is y and t is k
X = torch.randn(5, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
DRAWS = KeyedDraws(range(5), seed=0)
DENOISER = MixtureDenoiser(VE)


def denoised(y, k):
    return DENOISER(y, torch.full((len(y),), k, dtype=torch.float64), None).x0


def z(i):
    return DRAWS.normal((2, 1, 1), f"step {i}").double()


def check(sampler, step, steps=8):
    """On a Karras grid the sampler makes what `step(y, k, k_next, i)` makes of each two levels."""
    levels = Karras()(VE, steps).tolist()
    y = 20 * X
    for i in range(steps):
        y = step(y, levels[i], levels[i + 1], i)
    end = replace(sampler, grid=Karras()).sample(
        DENOISER, 20 * X, schedule=VE, steps=steps, draws=DRAWS
    )
    torch.testing.assert_close(end, y, rtol=0, atol=1e-9)


def test_euler_ancestral_steps_down_and_adds_noise():
    eta, s_noise = 0.8, 1.1

    def step(y, k, k_next, i):
        up = min(k_next, eta * sqrt(k_next**2 * (k**2 - k_next**2) / k**2))
        down = sqrt(k_next**2 - up**2)
        slope = (y - denoised(y, k)) / k
        return y + (down - k) * slope + s_noise * up * z(i)

    check(EulerAncestral(eta=eta, s_noise=s_noise), step)


@pytest.mark.parametrize("sampler", [Euler, Heun])
@pytest.mark.parametrize(
    "churn",
    [
        {"s_churn": 2.0},
        {"s_churn": 40.0, "s_noise": 1.007},
        {"s_churn": 4.0, "s_tmin": 0.05, "s_tmax": 3.0},
    ],
)
def test_churn_is_algorithm_2_of_edm(sampler, churn):
    steps, settings = 8, {"s_tmin": 0.0, "s_tmax": inf, "s_noise": 1.0, **churn}

    def step(y, k, k_next, i):
        inside = settings["s_tmin"] <= k <= settings["s_tmax"]
        gamma = min(settings["s_churn"] / steps, sqrt(2) - 1) if inside else 0.0
        k_hat = min(k * (1 + gamma), 20.0)
        y = y + sqrt(k_hat**2 - k**2) * settings["s_noise"] * z(i)
        slope = (y - denoised(y, k_hat)) / k_hat
        ahead = y + (k_next - k_hat) * slope
        if sampler is Euler or k_next == 0:
            return ahead
        slope_ahead = (ahead - denoised(ahead, k_next)) / k_next
        return y + (k_next - k_hat) * (slope + slope_ahead) / 2

    check(sampler(**churn), step, steps)


@pytest.mark.parametrize("name", ["s_churn", "s_tmin", "s_tmax", "s_noise"])
def test_less_churn_than_none_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is -1.0, expected 0 or more"):
        Heun(**{name: -1.0})


def test_dpm_solver_singlestep_takes_x0_from_the_middle():
    def step(y, k, k_next, i):
        here = denoised(y, k)
        if k_next == 0:
            return here
        middle = sqrt(k * k_next)  # half of the step in log k
        inside = middle / k * y + (1 - middle / k) * here
        return k_next / k * y + (1 - k_next / k) * denoised(inside, middle)

    check(DPMSolverSinglestep(), step)


@pytest.mark.parametrize("slope", ["midpoint", "heun"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_sde_solver_of_order_2_is_the_formula(eta, slope):
    memory = []

    def step(y, k, k_next, i):
        memory.append((denoised(y, k), k))
        here = memory[-1][0]
        if k_next == 0:
            return here
        h = log(k / k_next)
        rate = (1 + eta) * h
        y = k_next / k * exp(-eta * h) * y - expm1(-rate) * here
        y = y + k_next * sqrt(-expm1(-2 * eta * h)) * z(i)
        if i:
            before, k_before = memory[-2]
            weight = -expm1(-rate) / 2 if slope == "midpoint" else expm1(-rate) / rate + 1
            y = y + weight * h / log(k_before / k) * (here - before)
        return y

    check(DPMSolverSDE(eta=eta, slope=slope), step)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sde_solver_of_order_3_follows_a_parabola(eta):
    """With numbers from quadrature, where the sampler has them in closed form."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    nodes, weights = (nodes + 1) / 2, weights / 2
    memory = []

    def step(y, k, k_next, i):
        memory.append((denoised(y, k), -log(k)))
        here, now = memory[-1]
        if k_next == 0:
            return here
        h = log(k / k_next)
        rate = (1 + eta) * h
        y = k_next / k * exp(-eta * h) * y + k_next * sqrt(-expm1(-2 * eta * h)) * z(i)
        known = memory[-3:]
        for place, weight in zip(nodes, weights, strict=True):
            value = sum(  # Lagrange's polynomial
                x0 * np.prod([(now + place * h - b) / (a - b) for _, b in known if b != a])
                for x0, a in known
            )
            y = y + weight * rate * exp(-rate * (1 - place)) * value
        return y

    check(DPMSolverSDE(eta=eta, order=3), step)


def unipc(order, variant):
    """UniPC in its own words: the state is corrected, and predicted from the corrected one."""
    memory, corrected = [], []

    def differences(known, base, h, b):
        """B(h) sum_m a_m D_m / r_m over known (x0, lambda); one slope has the weight 1/2."""
        r = np.array([(lam - base[1]) / h for _, lam in known])
        if len(r) == 1:
            a = np.array([0.5])
        else:
            n = np.arange(1, len(r) + 1)
            wanted = np.array(moments(h, len(r) + 1)[1:]) / b
            a = np.linalg.solve(r ** (n[:, None] - 1), wanted)
        return sum(
            b * a_m / r_m * (x0 - base[0]) for (x0, _), a_m, r_m in zip(known, a, r, strict=True)
        )

    def step(y, k, k_next, i):
        memory.append((denoised(y, k), -log(k)))
        if i:
            start, k_start, base = corrected[-1], exp(-memory[-2][1]), memory[-2]
            h = log(k_start / k)
            b = h if variant == "B1" else -expm1(-h)
            known = [*memory[-order - 1 : -2], memory[-1]]
            y = k / k_start * start + (1 - k / k_start) * base[0]
            y = y + differences(known, base, h, b)
        corrected.append(y)
        here = memory[-1]
        if k_next == 0:
            return here[0]
        h = log(k / k_next)
        b = h if variant == "B1" else -expm1(-h)
        known = memory[-order:-1]
        y = k_next / k * y + (1 - k_next / k) * here[0]
        return y + differences(known, here, h, b) if known else y

    return step


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["B1", "B2"])
def test_unipc_corrects_the_state_and_goes_on_from_there(order, variant):
    check(UniPC(order=order, variant=variant), unipc(order, variant))


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_euler_is_a_step_in_time_on_straight_paths(steps):
    flow = RectifiedFlow()
    denoiser = GaussianDenoiser(flow)
    x, times = X, np.linspace(1, 0, steps + 1)
    for here, there in pairwise(times):
        prediction = denoiser(x, torch.full((len(x),), here, dtype=torch.float64), None)
        x = x + (there - here) * (prediction.eps - prediction.x0)
    end = Euler().sample(denoiser, X, schedule=flow, steps=steps)
    torch.testing.assert_close(end, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Euler(), DDIM()),
        (EulerAncestral(eta=0.4), DDIM(eta=0.4)),
        (DPMSolverSDE(eta=0.0), DPMSolver()),
        (DPMSolverSDE(eta=0.0, order=3), DPMSolver(order=3)),
        (UniPC(order=1, corrector=False), DDIM()),
    ],
)
@pytest.mark.parametrize("grid", [Uniform(), LogSNR(), Explicit([999, 700, 300.5, 20, 0])])
def test_samplers_that_are_the_same_agree(one, other, grid):
    schedule = PublishedSchedule().double()
    ends = [
        replace(sampler, grid=grid).sample(
            MixtureDenoiser(schedule), X, schedule=schedule, steps=9, draws=DRAWS
        )
        for sampler in (one, other)
    ]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-11)


@pytest.mark.parametrize("rate", [1e-9, 1e-3, 0.4, 0.6, 3.0, 30.0])
def test_moments_are_integrals_of_powers(rate):
    nodes, weights = np.polynomial.legendre.leggauss(60)
    r, weights = (nodes + 1) / 2, weights / 2
    want = [np.sum(weights * rate * np.exp(-rate * (1 - r)) * r**n) for n in range(4)]
    np.testing.assert_allclose(moments(rate, 4), want, rtol=1e-12)


@pytest.mark.parametrize("places", [[-0.8], [-1.0, 1.0], [-0.7, -2.0], [-0.5, -1.7, 1.0]])
def test_curve_weights_integrate_polynomials_through_their_places(places):
    rate = 0.9
    weights = curve_weights(places, rate)
    for n in range(1, len(places) + 1):
        made = sum(weight * place**n for weight, place in zip(weights, places, strict=True))
        assert abs(made - moments(rate, n + 1)[n]) < 1e-13


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPMSolver(order=4), "order is 4, expected 2 or 3"),
        (lambda: DPMSolverSDE(order=1), "order is 1, expected 2 or 3"),
        (lambda: DPMSolverSDE(slope="hone"), "slope is 'hone', expected 'midpoint' or 'heun'"),
        (lambda: EulerAncestral(eta=1.1), "eta is 1.1, expected 0 to 1"),
        (lambda: DPMSolverSDE(eta=-0.1), "eta is -0.1, expected 0 or more"),
        (lambda: UniPC(order=4), "order is 4, expected 1 to 3"),
        (lambda: UniPC(variant="B3"), "variant is 'B3', expected 'B1' or 'B2'"),
    ],
)
def test_settings_without_a_meaning_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
