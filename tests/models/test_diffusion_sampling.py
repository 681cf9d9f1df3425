"""Drawing that begins from images, or keeps a part of them."""

import pytest
import torch

from ldm.diffusion.draws import KeyedDraws, normal_like
from ldm.guidance.correction import Clipped
from ldm.models.diffusion.sampling import Known, Start, starting_noise
from ldm.samplers.ddim import DDIM
from ldm.samplers.known_region import KnownRegion
from tests.models.diffusion_models import by_class, kl, latent, pixel

IMAGES = torch.linspace(-1, 1, 2 * 3 * 4 * 4).view(2, 3, 4, 4)
LABELS = {"class": torch.tensor([0, 3])}


def noised(model, seeds, node, steps):
    """Images at the noise of a node, as the seeds' first noise makes it."""
    times = DDIM().grid(model.schedule, steps)
    t = model.schedule.tensor_of(times[node : node + 1], IMAGES).expand(2)
    return model.schedule.noised(IMAGES, normal_like(KeyedDraws(seeds, 0), IMAGES, "x_T"), t)


@pytest.mark.parametrize(("strength", "node"), [(1.0, 0), (0.6, 2), (0.1, 4)])
def test_drawing_from_images_takes_the_last_steps(strength, node):
    model, seeds = pixel().eval(), [5, 6]
    want = DDIM().sample(
        Clipped(model.ema_denoiser, model.schedule),
        noised(model, seeds, node, 5),
        schedule=model.schedule,
        steps=5,
        draws=KeyedDraws(seeds, 0),
        start=node,
    )
    got = model.sample(seeds, steps=5, sampler=DDIM(), start=Start(IMAGES, strength))
    assert torch.equal(got, want)


@pytest.mark.parametrize("strength", [0, -0.1, 1.01, float("nan")])
def test_a_strength_is_a_share_of_the_steps(strength):
    with pytest.raises(ValueError, match=r"strength is .*, expected more than 0, at most 1"):
        Start(IMAGES, strength)


def test_a_cell_is_known_where_all_of_its_pixels_are():
    mask = torch.ones(1, 1, 4, 8)
    mask[..., 0, 3] = 0
    assert Known(torch.zeros(1, 3, 4, 8), mask).cells((2, 4)).tolist() == [
        [[[1, 0, 1, 1], [1, 1, 1, 1]]]
    ]


def test_what_is_known_is_put_under_the_noise_of_every_evaluation():
    model, seeds = pixel().eval(), [5, 6]
    mask = torch.zeros(2, 1, 4, 4)
    mask[..., :2] = 1
    draws = KeyedDraws(seeds, 0)
    denoiser = Clipped(model.ema_denoiser, model.schedule)
    want = DDIM().sample(
        KnownRegion(denoiser, model.schedule, IMAGES, mask, draws),
        draws.normal((3, 4, 4), "x_T"),
        schedule=model.schedule,
        steps=5,
        draws=draws,
    )
    got = model.sample(seeds, steps=5, sampler=DDIM(), known=Known(IMAGES, mask))
    assert torch.equal(got, want)


def test_images_of_another_size_than_trained_are_drawn_at_theirs():
    model = latent(first_stage_config=kl()).eval()
    images = torch.zeros(1, 3, 8, 16)
    assert model.sample([0], steps=2, start=Start(images, 0.5)).shape == images.shape
    known = Known(images, torch.ones(1, 1, 8, 16))
    assert model.sample([0], steps=2, known=known).shape == images.shape


def test_an_image_from_an_image_depends_on_its_own_seed_alone():
    model = latent(by_class()).eval()
    options = {"steps": 4, "scale": 2.0}
    both = model.sample([1, 2], LABELS, start=Start(IMAGES, 0.5), **options)
    alone = model.sample(
        [2], {"class": LABELS["class"][1:]}, start=Start(IMAGES[1:], 0.5), **options
    )
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-5)


def test_decoding_in_parts_changes_nothing_but_memory():
    model = latent(first_stage_config=kl()).eval()
    whole = model.sample(range(3), steps=2)
    torch.testing.assert_close(model.sample(range(3), steps=2, decode_batch=2), whole)


def test_a_guide_takes_the_place_of_guidance():
    model, seen = latent(by_class()).eval(), []

    def guide(denoiser, null):
        seen.append(null)
        return denoiser

    guided = model.sample([1, 2], LABELS, steps=2, scale=3.0, guide=guide)
    assert torch.equal(guided, model.sample([1, 2], LABELS, steps=2))
    assert seen[0].batch_size == 2


def test_noise_of_another_seed_is_drawn_as_that_seed_is():
    model = latent(by_class()).eval()
    want = model.sample([1, 2], LABELS, steps=3)
    got = model.sample([8, 9], LABELS, steps=3, noise=starting_noise(model, [1, 2]))
    assert torch.equal(got, want)


def test_given_noise_is_the_noise_that_images_are_begun_with():
    model = pixel().eval()
    options = {"steps": 4, "start": Start(IMAGES, 0.5)}
    want = model.sample([1, 2], **options)
    got = model.sample([8, 9], noise=starting_noise(model, [1, 2]), **options)
    assert torch.equal(got, want)


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4, 5\), expected \(2, 3, 4, 4\)"):
        pixel().eval().sample([1, 2], steps=2, noise=torch.zeros(2, 3, 4, 5))
