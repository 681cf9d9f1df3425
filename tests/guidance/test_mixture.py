"""A mixture of four Gaussians in the plane, whose conditional denoisers are known exactly."""

import math

import pytest
import torch

from ldm.diffusion.draws import GeneratorDraws
from ldm.diffusion.schedule import PublishedSchedule
from ldm.guidance.classifier_free import ClassifierFree
from ldm.samplers.ancestral import Ancestral
from ldm.samplers.ddim import DDIM
from ldm.samplers.dpm import DPMSolver
from ldm.samplers.heun import Heun
from ldm.types import Conditioning, Prediction

CENTRES = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
WEIGHTS = torch.tensor([0.4, 0.3, 0.2, 0.1])
STD = 0.2
SCHEDULE = PublishedSchedule()
COUNT = 8000


def mixture(x_t, t, cond):
    """Ideal denoiser; a label of 4 means no condition, else the mode.  x_t: (B, 2, 1, 1)."""
    alpha, sigma = (level[:, None, None] for level in SCHEDULE.coefficients(t))
    x = x_t[:, None, :, 0, 0]  # (B, 1, 2) against modes (4, 2)
    precision = (alpha * STD) ** 2 + sigma**2
    per_mode = (CENTRES * sigma**2 + STD**2 * alpha * x) / precision
    log_weight = WEIGHTS.log() - ((x - alpha * CENTRES) ** 2).sum(-1) / (2 * precision[..., 0])
    labels = cond.vector[:, None]
    log_weight = log_weight.masked_fill((labels < 4) & (labels != torch.arange(4)), -math.inf)
    x0 = (log_weight.softmax(dim=1)[..., None] * per_mode).sum(dim=1)[..., None, None]
    alpha, sigma = alpha[..., None], sigma[..., None]
    return Prediction(x0=x0, eps=(x_t - alpha * x0) / sigma)


def sample(sampler, labels, steps, denoiser=mixture):
    draws = GeneratorDraws(torch.Generator().manual_seed(0), COUNT)
    x = sampler.sample(
        denoiser, draws.normal((2, 1, 1), "x"), schedule=SCHEDULE, steps=steps, draws=draws,
        cond=Conditioning(vector=torch.full((COUNT,), labels)),
    )  # fmt: skip
    return x[..., 0, 0]


@pytest.mark.parametrize(
    ("sampler", "steps"),
    [(DDIM(), 250), (Ancestral(), 250), (DPMSolver(), 25), (Heun(), 25)],
    ids=repr,
)
def test_every_mode_is_drawn_as_often_and_as_wide_as_it_is(sampler, steps):
    x = sample(sampler, 4, steps)
    mode = torch.cdist(x, CENTRES).argmin(dim=1)
    frequency = torch.bincount(mode, minlength=4) / COUNT
    # 4 standard errors, and the error of a finite number of steps
    error = 4 * (WEIGHTS * (1 - WEIGHTS) / COUNT).sqrt() + 0.01
    assert ((frequency - WEIGHTS).abs() < error).all()
    for index, centre in enumerate(CENTRES):
        here = x[mode == index]
        assert ((here.mean(dim=0) - centre).abs() < 0.03).all()
        assert ((here.std(dim=0) - STD).abs() < 0.02).all()


def test_a_condition_draws_its_mode_alone():
    x = sample(DPMSolver(), 3, 25)
    torch.testing.assert_close(x.mean(dim=0), CENTRES[3], rtol=0, atol=0.02)
    torch.testing.assert_close(x.std(dim=0), torch.full((2,), STD), rtol=0, atol=0.02)


def test_guidance_moves_samples_away_from_the_other_modes():
    def distance(scale):
        guided = ClassifierFree(mixture, scale, Conditioning(vector=torch.tensor([4])))
        return (sample(DDIM(), 3, 50, guided) @ torch.tensor([-1.0, -1.0])).mean() / 2

    distances = [distance(scale) for scale in (1.0, 2.0, 4.0)]
    assert abs(distances[0] - 1) < 0.02
    assert distances[0] < distances[1] < distances[2]
