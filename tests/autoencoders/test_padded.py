"""A first stage for images of any size."""

import pytest
import torch
from torch.nn import functional as F

from ldm.autoencoders.base import FirstStage
from ldm.autoencoders.padded import Padded, reflected
from ldm.autoencoders.posterior import DiagonalGaussian
from ldm.models.autoencoder import IdentityFirstStage
from tests.models.first_stages import tiny_kl


class Cells:
    """A first stage that keeps everything: each cell of 4 x 4 pixels is a latent of 48 channels."""

    downsample_factor = 4
    latent_channels = 48

    def encode(self, x):
        cells = F.pixel_unshuffle(x, 4)
        return DiagonalGaussian(torch.cat([cells, cells], dim=1))

    def decode(self, z):
        return F.pixel_shuffle(z, 4)


@pytest.mark.parametrize("size", [(8, 12), (9, 12), (7, 5), (3, 2), (1, 1), (1, 6)])
def test_what_keeps_everything_reconstructs_images_of_any_size(size):
    x = torch.randn(2, 3, *size)
    padded = Padded(Cells())
    torch.testing.assert_close(padded.reconstruct(x), x, rtol=0, atol=0)
    cells = tuple(-(-side // 4) for side in size)
    z = padded.encode(x).mode()
    assert z.shape == (2, 48, *cells)
    assert padded.decode(z).shape == (2, 3, 4 * cells[0], 4 * cells[1])
    torch.testing.assert_close(padded.decode(z, size), x, rtol=0, atol=0)


def test_images_of_whole_cells_are_not_changed():
    x, model = torch.randn(1, 3, 16, 24), tiny_kl().eval()
    with torch.no_grad():
        torch.testing.assert_close(Padded(model).reconstruct(x), model(x, False)[0])


@pytest.mark.parametrize("size", [(17, 24), (16, 23), (1, 3)])
def test_a_network_reconstructs_images_of_any_size(size):
    x, model = torch.randn(1, 3, *size), tiny_kl().eval()
    with torch.no_grad():
        assert Padded(model).reconstruct(x).shape == x.shape


def test_an_image_is_continued_as_torch_reflects_it():
    x = torch.randn(2, 3, 9, 7)
    torch.testing.assert_close(
        reflected(x, 16, 12), F.pad(x, (0, 5, 0, 7), mode="reflect"), rtol=0, atol=0
    )


def test_an_image_smaller_than_its_margin_is_reflected_again():
    row = torch.arange(3.0).reshape(1, 1, 1, 3)
    assert reflected(row, 2, 8)[0, 0].tolist() == [[0, 1, 2, 1, 0, 1, 2, 1]] * 2


def test_padded_first_stage_is_a_first_stage():
    padded = Padded(Cells())
    assert isinstance(padded, FirstStage)
    assert (padded.downsample_factor, padded.latent_channels) == (4, 48)


def test_without_a_factor_nothing_is_padded():
    x = torch.randn(1, 3, 5, 7)
    assert Padded(IdentityFirstStage()).encode(x).shape == x.shape
