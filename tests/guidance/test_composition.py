"""Wrappers around wrappers, in the documented order, and the examples of the page that says so."""

import re
from pathlib import Path

import pytest
import torch

from ldm.diffusion.draws import KeyedDraws
from ldm.diffusion.schedule import PublishedSchedule
from ldm.guidance.autoguidance import Autoguided
from ldm.guidance.classifier_free import ClassifierFree
from ldm.guidance.correction import Thresholded
from ldm.guidance.gradient import ClassifierGuided, ImageGuided, LowResolution
from ldm.guidance.interval import Interval
from ldm.guidance.projected import Projected
from ldm.guidance.rescaled import Rescaled
from ldm.samplers.ancestral import Ancestral
from ldm.samplers.ddim import DDIM
from ldm.samplers.dpm import DPMSolver
from ldm.samplers.heun import Heun
from ldm.samplers.known_region import KnownRegion
from ldm.samplers.plms import PLMS
from ldm.types import Conditioning
from tests.guidance.wrappers import net
from tests.models.diffusion_models import by_class, kl, latent
from tests.models.first_stages import perceptual_network

PAGE = Path(__file__).parents[2] / "docs" / "guidance.md"
SCHEDULE = PublishedSchedule().double()
B = 3
X = torch.randn(B, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
COND = Conditioning(vector=torch.tensor([0.1, 0.5, -0.3], dtype=torch.float64))
NEGATIVE = Conditioning(vector=torch.tensor([-1.0, -0.5, 0.8], dtype=torch.float64))
SCALE = torch.tensor([1.0, 2.0, 5.0])
TARGET = torch.linspace(-1, 1, 4 * 4 * 2 * B, dtype=torch.float64).reshape(B, 2, 4, 4)
MAIN, WEAK = net(SCHEDULE), net(SCHEDULE, seed=1)


def stack(rows, known=True):
    """Everything in the documented order, for some of the examples."""
    main = Autoguided(MAIN, WEAK, SCALE[rows].repeat(2))  # sees both halves of the batch
    guided = ClassifierFree(main, SCALE[rows], NEGATIVE[rows])
    guided = Rescaled(Projected(guided, SCHEDULE, 0.2, 3.0, -0.5), SCHEDULE, 0.7)
    denoiser = Interval(guided, MAIN, SCHEDULE, 0.1, 0.8)
    denoiser = ClassifierGuided(
        denoiser, SCHEDULE, lambda x, t, cond: -x.square().sum(dim=(1, 2, 3)), SCALE[rows] / 100
    )
    loss = LowResolution(TARGET[rows])
    denoiser = ImageGuided(denoiser, SCHEDULE, loss, SCALE[rows] / 10, torch.sin, "x0")
    denoiser = Thresholded(denoiser, SCHEDULE)
    if not known:
        return denoiser
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    mask[..., :4] = 1
    draws = KeyedDraws(range(B)[rows], seed=1)
    return KnownRegion(denoiser, SCHEDULE, torch.full_like(X[rows], 0.25), mask, draws)


def run(sampler, rows=slice(None), **options):
    return sampler.sample(
        stack(rows, **options), X[rows], schedule=SCHEDULE, steps=8, cond=COND[rows],
        draws=KeyedDraws(range(B)[rows], seed=0),
    )  # fmt: skip


@pytest.mark.parametrize(
    "sampler", [DDIM(), DDIM(eta=1.0), Ancestral(), PLMS(), DPMSolver(), Heun()], ids=repr
)
def test_an_image_of_the_whole_stack_does_not_depend_on_its_batch(sampler):
    together = run(sampler)
    assert together.isfinite().all()
    for i in range(B):
        alone = run(sampler, slice(i, i + 1))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-8, atol=1e-8)


def test_the_known_part_survives_whatever_guides_the_rest():
    left = run(DDIM())[..., :4] - 0.25
    assert left.abs().mean() < (run(DDIM(), known=False)[..., :4] - 0.25).abs().mean() / 2


def test_each_image_has_its_own_negative_prompt():
    t = torch.tensor([100, 500, 900])
    together = ClassifierFree(MAIN, 4.0, NEGATIVE)(X, t, COND)
    for i in range(B):
        rows = slice(i, i + 1)
        alone = ClassifierFree(MAIN, 4.0, NEGATIVE[rows])(X[rows], t[rows], COND[rows])
        torch.testing.assert_close(alone.x0[0], together.x0[i])
        against = MAIN(X, t, COND).x0 + 3 * (MAIN(X, t, COND).x0 - MAIN(X, t, NEGATIVE).x0)
        torch.testing.assert_close(together.x0, against)


def test_an_interval_may_be_around_gradients_or_inside_of_them():
    guided = ClassifierFree(MAIN, 4.0, NEGATIVE)

    def classifier(inner):
        return ClassifierGuided(inner, SCHEDULE, lambda x, t, cond: x.cos().sum(dim=(1, 2, 3)))

    inside = classifier(Interval(guided, MAIN, SCHEDULE, 0.3, 0.6))
    outside = Interval(classifier(guided), classifier(MAIN), SCHEDULE, 0.3, 0.6)
    spared = Interval(classifier(guided), MAIN, SCHEDULE, 0.3, 0.6)
    ends = [
        DDIM().sample(each, X, schedule=SCHEDULE, steps=6, cond=COND)
        for each in (inside, outside, spared)
    ]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_the_examples_of_the_page_draw_images():
    model = latent(by_class(first_stage_config=kl(), timesteps=1000, linear_end=0.02)).eval()
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    names = {
        "model": model,
        "seeds": [0, 1],
        "size": (8, 8),
        "batch": {"class": torch.tensor([1, 2])},
        "small": torch.zeros(2, 3, 8, 8),
        "target": torch.zeros(2, 3, 16, 16),
        "lpips": perceptual_network(),
    }
    with torch.no_grad():
        for block in blocks:
            exec(block, names)
        assert names["images"].shape == (2, 3, 16, 16)
        assert names["images"].isfinite().all()
        plain, *guided = (
            names[name](names["x"], torch.tensor([500, 500]), names["cond"]).x0
            for name in ("net", "upsampled", "alike")
        )
    for each in guided:
        assert each.isfinite().all()
        assert not torch.equal(each, plain)
