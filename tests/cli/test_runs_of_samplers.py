"""Samplers and grids that a schedule does not go with, found before anything is drawn."""

import pytest
import torch

from ldm.cli.sampling.options import require_runs
from ldm.config import ConfigError, instantiate_model
from ldm.diffusion.draws import KeyedDraws
from ldm.diffusion.schedule import PublishedSchedule, RectifiedFlow, VarianceExploding
from ldm.samplers.names import GRIDS, SAMPLERS, sampler_named
from ldm.types import Prediction
from tests.cli.jobs import draw
from tests.cli.runs import unconditional

SCHEDULES = {
    "published": PublishedSchedule(),
    "zero_terminal_snr": PublishedSchedule(zero_terminal_snr=True),
    "rectified_flow": RectifiedFlow(),
    "variance_exploding": VarianceExploding(),
}


def nothing(x_t, t, cond):
    return Prediction(x0=torch.zeros_like(x_t), eps=torch.zeros_like(x_t))


def runs(sampler, schedule, steps):
    """Whether a run with a denoiser ends."""
    try:
        sampler.sample(
            nothing,
            torch.ones(1, 1, 2, 2),
            schedule=schedule,
            steps=steps,
            draws=KeyedDraws([0], seed=0),
        )
    except ValueError:
        return False
    return True


def passes(sampler, schedule, steps):
    try:
        require_runs(sampler, schedule, steps)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("grid", [None, *GRIDS])
def test_what_passes_runs_and_what_is_refused_does_not(schedule, grid):
    kinds = set()
    for name in SAMPLERS:
        sampler = sampler_named(name, grid=grid)
        for steps in (1, 7):
            found = runs(sampler, SCHEDULES[schedule], steps)
            assert passes(sampler, SCHEDULES[schedule], steps) is found, (name, steps)
            kinds.add(found)
    if grid is None:
        assert kinds == (
            {True} if schedule in ("published", "variance_exploding") else {True, False}
        )


TO_PURE_NOISE = [
    {"target": "ldm.diffusion.schedule.RectifiedFlow"},
    {
        "target": "ldm.diffusion.schedule.PublishedSchedule",
        "params": {"zero_terminal_snr": True},
    },
]


@pytest.fixture(scope="module", params=TO_PURE_NOISE, ids=["flow", "zero_terminal_snr"])
def to_pure_noise(request):
    """A model whose schedule ends in pure noise."""
    block = unconditional()["model"]
    params = {**block["params"], "parameterization": "v"}
    params["schedule_config"] = request.param
    params = {key: params[key] for key in params if not key.startswith("linear_")}
    return instantiate_model({**block, "params": params}).eval()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--sampler", "plms"], "--sampler: PLMS on .*: .* is 0 where .* is pure noise: use DDIM"),
        (["--times", "karras"], "--times: Karras in 4 steps: .* no finite signal-to-noise ratio"),
        (["--sampler", "heun", "--times", "logsnr"], "--times: LogSNR in 4 steps: .* use Uniform"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_anything_is_written(
    to_pure_noise, tmp_path, words, expected
):
    with pytest.raises(ConfigError, match=expected):
        draw(to_pure_noise, tmp_path, "--n", 1, "--steps", 4, *words)
    assert not list(tmp_path.iterdir())


def test_published_times_past_the_end_are_refused_by_their_flag(tmp_path):
    block = unconditional()["model"]
    model = instantiate_model(block).eval()
    with pytest.raises(ConfigError, match=r"--times: PublishedUniform in 999 steps: .* time 1000"):
        draw(model, tmp_path, "--n", 1, "--steps", 999, "--times", "published")
