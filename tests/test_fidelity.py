"""How near reconstructions are to their images."""

import pytest
import torch

from ldm.fidelity import psnr, ssim


def images():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_psnr_of_a_known_error():
    x = torch.zeros(2, 3, 16, 16)
    torch.testing.assert_close(psnr(x, x + 0.02), torch.full((2,), 40.0))
    assert psnr(x, x).tolist() == [100.0, 100.0]


def test_ssim_of_equal_images_is_one_and_falls_with_noise():
    x = images()
    torch.testing.assert_close(ssim(x, x), torch.ones(2))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert (ssim(x, x + 0.1 * noise) > ssim(x, x + 0.5 * noise)).all()


def test_ssim_of_constants_compares_their_means():
    a, b, c1 = 0.5, -0.25, (0.01 * 2) ** 2
    got = ssim(torch.full((1, 3, 16, 16), a), torch.full((1, 3, 16, 16), b))
    assert got.item() == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), rel=1e-3)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_what_is_out_of_range_counts_as_clipped(measure):
    x = images()
    torch.testing.assert_close(measure(x, 3 * x), measure(x, (3 * x).clamp(-1, 1)))
