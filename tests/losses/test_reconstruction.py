"""Reconstruction error, likelihood, and use of the codebook."""

import math

import pytest
import torch

from ldm.losses.reconstruction import (
    check_pixel_loss,
    codebook_use,
    laplace_nll,
    reconstruction_error,
)


@pytest.fixture
def images():
    return torch.randn(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "norm"), [("l1", torch.abs), ("l2", torch.square)])
def test_pixel_error_is_the_mean_over_an_image(name, norm, images):
    error = reconstruction_error(*images, pixel_loss=name)
    torch.testing.assert_close(error.pixel, norm(images[0] - images[1]).mean(dim=(1, 2, 3)))
    assert torch.equal(error.mean, error.pixel)


def test_error_of_a_perfect_reconstruction_is_zero(images):
    error = reconstruction_error(images[0], images[0])
    assert torch.equal(error.mean, torch.zeros(3))


def test_nll_is_that_of_a_laplace_density_up_to_its_constant(images):
    x, x_hat = images.double()
    logvar = torch.tensor(0.3, dtype=torch.float64)
    error = (x - x_hat).abs().mean(dim=(1, 2, 3))
    density = torch.distributions.Laplace(x_hat, logvar.exp())
    expected = -density.log_prob(x).sum(dim=(1, 2, 3)) - x[0].numel() * math.log(2)
    torch.testing.assert_close(laplace_nll(error, logvar, x[0].numel()), expected)


@pytest.mark.parametrize("used", [1, 3, 8])
def test_perplexity_of_codes_used_alike_is_their_number(used):
    perplexity, count = codebook_use(torch.arange(used).repeat(4), num_codes=8)
    torch.testing.assert_close(perplexity, torch.tensor(float(used)))
    assert count == used


def test_unknown_pixel_loss_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"^pixel_loss: 'l22'; expected one of l1, l2; did you mean 'l2'"
    ):
        check_pixel_loss("l22")
