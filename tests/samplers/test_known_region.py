"""Inpainting by holding known latents."""

import pytest
import torch

from ldm.diffusion.draws import KeyedDraws
from ldm.diffusion.schedule import PublishedSchedule
from ldm.samplers.ancestral import Ancestral
from ldm.samplers.ddim import DDIM
from ldm.samplers.dpm import DPMSolver
from ldm.samplers.heun import Heun
from ldm.samplers.known_region import KnownRegion, KnownRegionAfterStep, blend_known, continued
from tests.gaussian import GaussianDenoiser

SCHEDULE = PublishedSchedule()
DRAWS = KeyedDraws([0, 1], seed=0)
X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
KNOWN = torch.full_like(X, 0.9)
MASK = torch.zeros(2, 1, 4, 4)
MASK[..., :2] = 1


def test_blend_keeps_the_known_where_the_mask_is_one():
    blended = blend_known(X, KNOWN, MASK)
    assert torch.equal(blended[..., :2], KNOWN[..., :2])
    assert torch.equal(blended[..., 2:], X[..., 2:])


@pytest.mark.parametrize("sampler", [DDIM(), Ancestral(), DPMSolver(), Heun()], ids=repr)
def test_every_sampler_ends_near_the_known_latents(sampler):
    """Ideal denoising of a known region noised to a tiny level gives it back."""
    inner = GaussianDenoiser(SCHEDULE, mean=0.0, std=1.0)
    denoiser = KnownRegion(inner, SCHEDULE, KNOWN, MASK, DRAWS)
    end = sampler.sample(denoiser, X, schedule=SCHEDULE, steps=1000, draws=DRAWS)
    assert denoiser.count == inner.evaluations
    # what is left of the noise of time 0, sigma = 0.01, within 5 of its deviations
    assert (end - KNOWN)[..., :2].abs().max() < 0.05
    assert (end - KNOWN)[..., 2:].abs().max() > 0.5


def test_known_latents_change_nothing_where_the_mask_is_zero():
    """The ideal denoiser of independent pixels does not look at the neighbours."""
    plain = DDIM().sample(GaussianDenoiser(SCHEDULE), X, schedule=SCHEDULE, steps=10)
    denoiser = KnownRegion(GaussianDenoiser(SCHEDULE), SCHEDULE, KNOWN, MASK, DRAWS)
    held = DDIM().sample(denoiser, X, schedule=SCHEDULE, steps=10)
    torch.testing.assert_close(held[..., 2:], plain[..., 2:])


@pytest.mark.parametrize("sampler", [DDIM(), Ancestral(), DPMSolver()], ids=repr)
def test_blending_after_each_step_ends_at_the_known_latents_with_noise_of_the_last_time(sampler):
    callback = KnownRegionAfterStep(SCHEDULE, KNOWN, MASK, DRAWS)
    end = sampler.sample(
        GaussianDenoiser(SCHEDULE), X, schedule=SCHEDULE, steps=1000, draws=DRAWS,
        callback=callback,
    )  # fmt: skip
    eps = DRAWS.normal((3, 4, 4), "known 999")
    want = SCHEDULE.noised(KNOWN, eps, torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(end[..., :2], want[..., :2])


def test_what_is_hidden_is_continued_by_the_mean_of_the_nearest_square_that_is_known():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    mask = torch.ones(1, 1, 4, 4)
    mask[..., 0, 0] = 0
    mask[..., 2:, 2:] = 0
    filled = continued(image, mask)
    assert filled[0, 0, 0, 0] == pytest.approx((1 + 4 + 5) / 3)
    known = image[mask == 1]
    assert filled[..., 2:, 2:].flatten().tolist() == pytest.approx([known.mean().item()] * 4)
    assert torch.equal(filled[mask == 1], known)


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (6, 3)])
def test_what_was_hidden_leaves_no_trace(size):
    draw = torch.Generator().manual_seed(0)
    image, other = torch.randn(2, 2, 3, *size, generator=draw)
    mask = (torch.rand(2, 1, *size, generator=draw) < 0.5).float()
    mask[1] = 0
    both = [continued(torch.where(mask == 1, image, each), mask) for each in (image, other)]
    assert torch.equal(*both)
    assert both[0].isfinite().all()
    assert not both[0][1].any()
