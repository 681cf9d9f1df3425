"""Guidance by the likeness of an image to a text."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ldm.diffusion.schedule import PublishedSchedule
from ldm.guidance.clip import CLIPDissimilarity
from ldm.guidance.gradient import ImageGuided
from ldm.nets.clip import MEAN, STD, to_clip_pixels
from tests.gaussian import GaussianDenoiser

IMAGES = torch.rand(2, 3, 12, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def shown(pixels):
    """Pixels in [-1, 1] of what CLIP is given."""
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (MEAN, STD))
    return 2 * (pixels * std + mean) - 1


def test_the_mean_of_clips_pixels_is_zero_and_a_deviation_one():
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    for level, want in ((mean, 0.0), (mean + std, 1.0)):
        image = (2 * level - 1).view(1, 3, 1, 1).expand(1, 3, 4, 4)
        torch.testing.assert_close(
            to_clip_pixels(image, 4), torch.full((1, 3, 4, 4), want), rtol=0, atol=1e-6
        )


def test_a_square_of_clips_size_is_seen_as_it_is():
    image = IMAGES[:, :, :8]
    torch.testing.assert_close(shown(to_clip_pixels(image, 8)), image)


def test_of_a_long_image_the_square_in_the_centre_is_seen():
    torch.testing.assert_close(shown(to_clip_pixels(IMAGES, 8)), IMAGES[:, :, 2:10])
    wide = IMAGES.transpose(2, 3)
    torch.testing.assert_close(shown(to_clip_pixels(wide, 8)), wide[..., 2:10])


@pytest.mark.parametrize(("height", "width"), [(4, 4), (16, 16), (7, 31), (300, 200)])
def test_any_size_becomes_clips(height, width):
    image = torch.zeros(1, 3, height, width)
    assert to_clip_pixels(image, 8).shape == (1, 3, 8, 8)
    torch.testing.assert_close(shown(to_clip_pixels(image, 8)), torch.zeros(1, 3, 8, 8))


def test_a_smaller_picture_is_smooth_as_pillow_makes_it():
    Image = pytest.importorskip("PIL.Image")
    levels = torch.randint(0, 256, (32, 32), generator=torch.Generator().manual_seed(1))
    picture = Image.fromarray(levels.to(torch.uint8).numpy())
    want = torch.tensor(list(picture.resize((8, 8), Image.BICUBIC).tobytes())).view(8, 8)
    image = (levels / 127.5 - 1).expand(1, 3, 32, 32)
    got = (shown(to_clip_pixels(image, 8))[0, 0] + 1) * 127.5
    assert (got - want).abs().max() <= 1  # which rounds, once for either direction


def test_grey_is_seen_in_three_colours_and_other_numbers_of_channels_are_refused():
    grey = IMAGES[:, :1]
    assert torch.equal(to_clip_pixels(grey, 8), to_clip_pixels(grey.expand(-1, 3, -1, -1), 8))
    with pytest.raises(ValueError, match="images have 4 channels, expected 1 or 3"):
        to_clip_pixels(torch.zeros(1, 4, 8, 8), 8)


def test_nothing_is_gained_by_leaving_the_range_of_an_image():
    assert torch.equal(to_clip_pixels(3 * IMAGES, 8), to_clip_pixels((3 * IMAGES).clamp(-1, 1), 8))


def colours(pixels):
    """An embedding by hand: the mean of each colour, (B, 3)."""
    return pixels.mean(dim=(2, 3))


def test_the_loss_is_minus_the_cosine_of_the_angle():
    image = torch.zeros(3, 3, 4, 4)
    level = 2 * torch.tensor(MEAN) - 1
    image += level.view(1, 3, 1, 1)
    image[:, 0] += 0.1 * 2 * STD[0]  # (0.1, 0, 0) in CLIP's pixels
    text = torch.tensor([[5.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-1.0, 1.0, 0.0]])
    loss = CLIPDissimilarity(colours, text, 4)(image)
    torch.testing.assert_close(loss, torch.tensor([-1, 0, math.sqrt(0.5)]), rtol=0, atol=1e-5)


def test_a_text_for_all_is_that_of_each():
    text = torch.tensor([[1.0, 2.0, 3.0]])
    one, each = (CLIPDissimilarity(colours, t, 8)(IMAGES) for t in (text, text.expand(2, 3)))
    assert torch.equal(one, each)


class FromHost(TorchFunctionMode):
    """Counts tensors that are made of numbers of the host, which a GPU is waited for with."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
        return func(*args, **(kwargs or {}))


def test_an_evaluation_makes_no_tensor_of_numbers_of_the_host():
    with FromHost() as made:
        loss = CLIPDissimilarity(colours, torch.ones(1, 3), 4)
    assert made.count > 0
    with FromHost() as made:
        loss(IMAGES)
    assert made.count == 0


@pytest.mark.parametrize("through", ["denoiser", "x0"])
def test_an_estimate_comes_closer_to_the_text(through):
    schedule = PublishedSchedule()
    inner = GaussianDenoiser(schedule, mean=0.0, std=0.5)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([200, 600])
    loss = CLIPDissimilarity(colours, torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]), 8)

    def decode(z):
        return F.interpolate(z, scale_factor=2)

    guided = ImageGuided(inner, schedule, loss, 2.0, decode, through)
    plain, steered = (loss(decode(each(x, t, None).x0)) for each in (inner, guided))
    assert (steered < plain - 0.01).all()
