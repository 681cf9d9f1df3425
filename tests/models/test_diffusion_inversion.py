"""Variations of an image: its own noise, and a share of it replaced."""

from types import MethodType

import pytest
import torch

from ldm.diffusion.interpolation import slerp
from ldm.models.diffusion.sampling import Inverted, starting_noise
from ldm.samplers.ancestral import Ancestral
from ldm.samplers.ddim import DDIM
from ldm.samplers.grid import Leading
from ldm.samplers.inversion import DDIMInversion
from tests.gaussian import GaussianDenoiser
from tests.models.diffusion_models import by_class, kl, latent, pixel

IMAGES = torch.linspace(-1, 1, 2 * 3 * 4 * 4).view(2, 3, 4, 4)
LABELS = {"class": torch.tensor([0, 3])}
OTHERS = {"class": torch.tensor([1, 2])}


@pytest.fixture
def ideal():
    """A model of Gaussian data that knows all there is to know of them."""
    model = pixel(timesteps=1000, linear_start=1e-4, linear_end=0.02, clip_denoised=False).eval()
    model.told = MethodType(lambda self, net, draws: GaussianDenoiser(self.schedule), model)
    return model


def error(model, steps, batch=None, **options):
    again = model.sample([0, 1], batch, steps=steps, start=Inverted(IMAGES, 0.0), **options)
    return float((again - IMAGES).abs().mean())


def test_an_image_is_drawn_again_the_better_the_more_steps(ideal):
    errors = [error(ideal, steps) for steps in (25, 50, 100, 200)]
    assert errors[3] < 0.6 * errors[2] < 0.36 * errors[1] < 0.216 * errors[0]
    assert errors[3] < 0.02


def test_a_network_draws_an_image_again_the_better_the_more_steps():
    # weights by rule: so rough a network that its flow is followed at low noise levels only
    model = latent(by_class(timesteps=1000, linear_start=1e-4, linear_end=5e-4)).eval()
    errors = [error(model, steps, LABELS) for steps in (10, 40, 160)]
    assert errors[2] < 0.5 * errors[1] < 0.25 * errors[0]


def test_all_of_the_noise_replaced_is_an_image_of_the_seed(ideal):
    for model, batch in ((ideal, None), (latent(by_class()).eval(), LABELS)):
        want = model.sample([5, 6], batch, steps=4)
        got = model.sample([5, 6], batch, steps=4, start=Inverted(IMAGES, 1.0))
        assert torch.equal(got, want)


def test_a_share_of_the_noise_is_that_of_the_seed(ideal):
    denoiser = GaussianDenoiser(ideal.schedule)
    run = {"schedule": ideal.schedule, "steps": 8}
    own = DDIMInversion().sample(denoiser, IMAGES, **run)
    want = DDIM().sample(denoiser, slerp(own, starting_noise(ideal, [5, 6]), 0.3), **run)
    got = ideal.sample([5, 6], steps=8, sampler=DDIM(), start=Inverted(IMAGES, 0.3))
    assert torch.equal(got, want)


def test_more_strength_goes_further_from_the_image(ideal):
    apart = [
        float((ideal.sample([5, 6], steps=50, start=Inverted(IMAGES, share)) - IMAGES).abs().mean())
        for share in (0, 0.2, 0.5, 1)
    ]
    assert apart == sorted(apart)
    assert apart[1] > 2 * apart[0]


def test_the_noise_is_that_of_the_samplers_own_grid(ideal):
    sampler = DDIM(grid=Leading())  # begins below t_max
    assert error(ideal, 100, sampler=sampler) < 0.6 * error(ideal, 50, sampler=sampler)


def test_what_describes_the_image_is_what_it_is_inverted_with():
    model = latent(by_class()).eval()

    def drawn(batch, start):
        return model.sample([5, 6], batch, steps=6, start=start)

    same = drawn(LABELS, Inverted(IMAGES, 0.0))
    assert torch.equal(drawn(LABELS, Inverted(IMAGES, 0.0, LABELS)), same)
    assert not torch.allclose(drawn(LABELS, Inverted(IMAGES, 0.0, OTHERS)), same)


def test_nothing_guides_the_inversion():
    model, seen = latent(by_class()).eval(), []

    def guide(denoiser, null):
        def watching(x_t, t, cond):
            seen.append(float(t[0]))
            return denoiser(x_t, t, cond)

        return watching

    model.sample([5, 6], LABELS, steps=4, guide=guide, start=Inverted(IMAGES, 0.5))
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == 4
    seen.clear()
    start = Inverted(IMAGES, 0.5, guide=guide)
    model.sample([5, 6], LABELS, steps=4, scale=3.0, start=start)
    assert seen[1:] == sorted(seen[1:])  # but its own


def test_noise_that_a_sampler_adds_is_that_of_the_seed():
    model = latent(by_class()).eval()
    options = {"steps": 4, "sampler": Ancestral(), "start": Inverted(IMAGES, 0.0)}
    first, second = (model.sample(seeds, LABELS, **options) for seeds in ([1, 2], [3, 4]))
    assert not torch.allclose(first, second)


def test_images_of_another_size_than_trained_are_drawn_at_theirs():
    model = latent(first_stage_config=kl()).eval()
    images = torch.zeros(1, 3, 8, 16)
    assert model.sample([0], steps=2, start=Inverted(images, 0.5)).shape == images.shape


@pytest.mark.parametrize("strength", [-0.1, 1.01, float("nan")])
def test_a_strength_is_a_share_of_the_noise(strength):
    with pytest.raises(ValueError, match=r"strength is .*, expected 0 to 1"):
        Inverted(IMAGES, strength)
