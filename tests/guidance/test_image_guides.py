"""The image guides of the paper's appendix C with our own first stages and perceptual distance."""

import pytest
import torch

from ldm.diffusion.schedule import PublishedSchedule
from ldm.guidance.gradient import ImageGuided, LowResolution
from ldm.models.autoencoder import VQModelInterface
from tests.gaussian import GaussianDenoiser
from tests.models.first_stages import NETWORK, perceptual_network, tiny_kl

SCHEDULE = PublishedSchedule()
INNER = GaussianDenoiser(SCHEDULE, mean=0.0, std=1.0)
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([300, 700])
TARGET = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def perceptual(image):
    return perceptual_network()(TARGET, image).flatten()


def small(image):
    return LowResolution(TARGET[..., ::4, ::4])(image)


@pytest.mark.parametrize("through", ["denoiser", "x0"])
@pytest.mark.parametrize(("loss", "scale"), [(small, 0.01), (perceptual, 1.0)])
def test_guiding_lowers_the_loss_of_the_decoded_image(loss, scale, through):
    decode = tiny_kl().eval().decode
    with torch.no_grad():
        plain = INNER(X, T, None).x0
        guided = ImageGuided(INNER, SCHEDULE, loss, scale, decode, through)(X, T, None).x0
        assert (loss(decode(guided)) < loss(decode(plain))).all()


def test_a_quantizer_lets_the_gradient_through():
    torch.manual_seed(0)
    model = VQModelInterface({**NETWORK, "double_z": False}, torch.nn.Identity(), 16, 3).eval()
    guided = ImageGuided(INNER, SCHEDULE, small, 0.1, model.decode)(X, T, None).x0
    change = (guided - INNER(X, T, None).x0).abs()
    assert change.isfinite().all()
    assert (change.amax(dim=(1, 2, 3)) > 0).all()
