"""Short names of samplers and grids."""

from dataclasses import replace

import pytest
import torch

from ldm.diffusion.draws import KeyedDraws
from ldm.diffusion.schedule import PublishedSchedule
from ldm.samplers import base
from ldm.samplers.ancestral import Ancestral
from ldm.samplers.ddim import DDIM
from ldm.samplers.dpm import DPMSolverSDE
from ldm.samplers.grid import Karras, Leading, Uniform
from ldm.samplers.inversion import DDIMInversion
from ldm.samplers.names import GRIDS, SAMPLERS, sampler_named
from tests.gaussian import GaussianDenoiser
from tests.samplers.solvers import SOLVERS

WITH_ETA = ["ddim", "euler-a", "dpmpp-2m-sde", "dpmpp-3m-sde"]


def every_class(of):
    return {c for child in of.__subclasses__() for c in ({child} | every_class(child))}


@pytest.mark.parametrize("grid", [None, *GRIDS])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_name_draws_on_every_grid(name, grid):
    schedule = PublishedSchedule()
    end = sampler_named(name, grid=grid).sample(
        GaussianDenoiser(schedule), torch.ones(1, 1, 1, 1),
        schedule=schedule, steps=8, draws=KeyedDraws([0], seed=0),
    )  # fmt: skip
    assert end.isfinite().all()


@pytest.mark.parametrize("sampler", [*SOLVERS, *(make() for make in SAMPLERS.values())], ids=repr)
def test_a_sampler_says_whether_it_adds_noise(sampler):
    schedule = PublishedSchedule()

    def drawn(seed):
        draws = KeyedDraws([seed], seed=0)
        denoiser, start = GaussianDenoiser(schedule), torch.ones(1, 1, 1, 1)
        return sampler.sample(denoiser, start, schedule=schedule, steps=8, draws=draws)

    assert sampler.adds_noise == (not torch.equal(drawn(0), drawn(1)))


def test_every_sampler_has_a_name_and_is_listed_for_its_tests():
    concrete = {c for c in every_class(base.Sampler) if not c.__abstractmethods__}
    ours = {c for c in concrete if c.__module__.startswith("ldm.")} - {DDIMInversion}
    assert {type(make()) for make in SAMPLERS.values()} == ours
    assert {type(sampler) for sampler in SOLVERS} == ours


def test_a_name_is_the_sampler_with_its_defaults():
    assert sampler_named("ddim") == DDIM()
    assert sampler_named("ddpm-large") == Ancestral(v=1.0)
    assert sampler_named("ddim", grid="trailing") == DDIM(grid=Uniform())
    assert sampler_named("dpmpp-3m-sde", grid="karras", eta=0.5) == DPMSolverSDE(
        grid=Karras(), order=3, eta=0.5
    )
    assert sampler_named("ddpm", grid="leading") == replace(Ancestral(), grid=Leading())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "dpmp-2m"}, "sampler: 'dpmp-2m'; expected one of .*mean 'dpmpp-2m'"),
        ({"name": "Euler"}, "mean 'euler'"),
        ({"name": "ddim", "grid": "kerras"}, "grid: 'kerras'; .*mean 'karras'"),
        ({"name": "ddim", "eta": 1.5}, "eta: 1.5; expected 0 to 1"),
        ({"name": "ddim", "eta": -0.5}, "eta: -0.5; expected 0 to 1"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(given, message):
    with pytest.raises(ValueError, match=message):
        sampler_named(**given)


@pytest.mark.parametrize("name", SAMPLERS)
def test_eta_is_for_samplers_that_have_one(name):
    if name in WITH_ETA:
        assert sampler_named(name, eta=0.0).eta == 0
        return
    with pytest.raises(ValueError, match=f"eta: 0.0; {name} has none, .* {', '.join(WITH_ETA)}"):
        sampler_named(name, eta=0.0)
