"""Samplers on a mixture of Gaussians, where predictions are not linear in the state."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from ldm.diffusion.draws import GeneratorDraws
from ldm.diffusion.schedule import PublishedSchedule, RectifiedFlow
from ldm.samplers.grid import Explicit, Karras, Uniform
from ldm.samplers.names import sampler_named
from ldm.samplers.plms import PLMS
from ldm.samplers.unipc import UniPC
from tests.mixture import CENTRES, WEIGHTS, MixtureDenoiser
from tests.samplers.solvers import ODE, SOLVERS, name

SCHEDULE = PublishedSchedule().double()
DENOISER = MixtureDenoiser(SCHEDULE)
X = torch.randn(32, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@cache
def solution(steps=600):
    """The probability-flow ODE from X at t_max to time 0, by Runge-Kutta's method in log k."""
    (a1, a0), (s1, s0) = SCHEDULE.exact(np.array([999.0, 0.0]))
    log_k, h = np.linspace(np.log(s1 / a1), np.log(s0 / a0), steps + 1, retstep=True)

    def slope(at, y):
        time = SCHEDULE.time_of_log_snr(np.array([-2 * at]))
        (alpha,), _ = SCHEDULE.exact(time)
        return np.exp(at) * DENOISER(y * alpha, torch.from_numpy(time).expand(len(y)), None).eps

    y = X / a1
    for at in log_k[:-1]:
        first = slope(at, y)
        second = slope(at + h / 2, y + h / 2 * first)
        third = slope(at + h / 2, y + h / 2 * second)
        y = y + h / 6 * (first + 2 * second + 2 * third + slope(at + h, y + h * third))
    return y * a0


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ODE, ids=name)
def test_error_falls_with_the_order_of_the_sampler(sampler):
    errors = []
    for steps in (160, 320):
        nodes = Karras(rho=7.0)(SCHEDULE, steps + 1)[:-1]
        fixed = replace(sampler, grid=Explicit(nodes))
        end = fixed.sample(DENOISER, X, schedule=SCHEDULE, steps=steps)
        errors.append((end - solution()).abs().max())
    order = sampler.convergence_order
    assert (errors[0] / errors[1]).log2() > {1: 0.9, 2: 1.9, 3: 2.7}[order]


def test_few_evaluations_are_best_spent_by_multistep_solvers_on_log_snr():
    def error(name):
        sampler = sampler_named(name, grid="logsnr")
        steps = max(n for n in range(21) if sampler.evaluations(n) <= 20)
        end = sampler.sample(DENOISER, X, schedule=SCHEDULE, steps=steps)
        return float((end - want).abs().mean())

    want = UniPC(order=3).sample(DENOISER, X, schedule=SCHEDULE, steps=500)
    errors = {name: error(name) for name in ("ddim", "heun", "dpmpp-2s", "dpmpp-2m", "unipc")}
    assert max(errors["dpmpp-2m"], errors["unipc"]) < errors["dpmpp-2s"] < errors["ddim"]
    assert max(errors["dpmpp-2m"], errors["unipc"]) < errors["heun"] / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "schedule"),
    [
        (sampler, schedule)
        for sampler in SOLVERS
        for schedule in (PublishedSchedule(), RectifiedFlow())
        if not (schedule.ends_in_pure_noise and isinstance(sampler, PLMS))
    ],
    ids=name,
)
def test_every_mode_is_drawn_as_often_and_as_wide_as_it_is(sampler, schedule):
    count, denoiser = 5000, MixtureDenoiser(schedule)
    draws = GeneratorDraws(torch.Generator().manual_seed(0), count)
    steps = 100 if sampler.convergence_order == 1 else 40
    x = replace(sampler, grid=Uniform()).sample(
        denoiser, draws.normal((2, 1, 1), "x"), schedule=schedule, steps=steps, draws=draws
    )[..., 0, 0].double()  # fmt: skip
    mode = torch.cdist(x, CENTRES).argmin(dim=1)
    frequency = torch.bincount(mode, minlength=4) / count
    # 4 standard errors, and the error of a finite number of steps
    error = 4 * (WEIGHTS * (1 - WEIGHTS) / count).sqrt() + 0.01
    assert ((frequency - WEIGHTS).abs() < error).all()
    for index, centre in enumerate(CENTRES):
        here = x[mode == index]
        error = 4 * denoiser.std / len(here) ** 0.5
        assert ((here.mean(dim=0) - centre).abs() < error + 0.02).all()
        assert ((here.std(dim=0) - denoiser.std).abs() < error / 2**0.5 + 0.02).all()
