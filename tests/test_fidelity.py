"""PSNR and SSIM against closed forms and an implementation by loops."""

import math

import pytest
import torch
from torch.nn import functional as F

from ldm.fidelity import detail, psnr, ssim


def sharpness(images, reconstructions):
    """Of each image by itself."""
    return detail(reconstructions) / detail(images)


def pictures(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8


@pytest.mark.parametrize("offset", [0.001, 0.1, 0.2])
def test_psnr_of_a_constant_offset_is_in_closed_form(offset):
    images = pictures(3, 3, 8, 5)
    expected = 20 * math.log10(2 / offset)
    torch.testing.assert_close(
        psnr(images, images + offset), torch.full((3,), expected), rtol=1e-4, atol=0
    )


def test_psnr_is_of_each_image_by_itself():
    images = pictures(2, 1, 4, 4)
    errors = torch.tensor([0.02, 0.2]).reshape(2, 1, 1, 1)
    torch.testing.assert_close(
        psnr(images, images - errors), torch.tensor([40.0, 20.0]), rtol=1e-4, atol=0
    )


def test_an_exact_reconstruction_has_100_db_and_similarity_1():
    images = pictures(2, 3, 16, 16)
    assert psnr(images, images.clone()).tolist() == [100, 100]
    torch.testing.assert_close(ssim(images, images.clone()), torch.ones(2))


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_reconstructions_are_clamped(measure):
    images = torch.ones(1, 3, 16, 16)
    assert measure(images, images + 3) == measure(images, images)
    assert measure(images, images - 1) < measure(images, images + 3)


@pytest.mark.parametrize("measure", [psnr, sharpness, ssim])
def test_half_precision_is_compared_in_float32(measure):
    images, other = pictures(2, 3, 16, 16).bfloat16(), pictures(2, 3, 16, 16, seed=1).bfloat16()
    assert measure(images, other).dtype == torch.float32
    assert torch.equal(measure(images, other), measure(images.float(), other.float()))


@pytest.mark.parametrize("measure", [psnr, sharpness, ssim])
def test_autocast_changes_nothing(measure):
    images = 0.5 + 0.02 * pictures(2, 3, 32, 32)  # bfloat16 has steps of 0.004 here
    other = images + 0.005 * pictures(2, 3, 32, 32, seed=1)
    want = measure(images, other)
    with torch.autocast("cpu", torch.bfloat16):
        got = measure(images, other)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


def similarity_by_loops(x, y):
    """Eq. (13) of Wang et al. for one channel, window by window in float64, one at each pixel."""
    x, y = (F.pad(image[None, None], (5, 5, 5, 5), mode="reflect")[0, 0] for image in (x, y))
    along = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(along**2) / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    values = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a = x[top : top + 11, left : left + 11].double()
            b = y[top : top + 11, left : left + 11].double()
            m1, m2 = (window * a).sum(), (window * b).sum()
            v1, v2 = (window * (a - m1) ** 2).sum(), (window * (b - m2) ** 2).sum()
            covariance = (window * (a - m1) * (b - m2)).sum()
            values.append(
                (2 * m1 * m2 + c1) * (2 * covariance + c2) / ((m1**2 + m2**2 + c1) * (v1 + v2 + c2))
            )
    return torch.stack(values).mean()


def test_similarity_is_that_of_the_paper():
    images = pictures(2, 3, 14, 17)
    other = (0.7 * images + 0.3 * pictures(2, 3, 14, 17, seed=1)).clamp(-1, 1)
    expected = [
        torch.stack([similarity_by_loops(a, b) for a, b in zip(x, y, strict=True)]).mean()
        for x, y in zip(images, other, strict=True)
    ]
    torch.testing.assert_close(
        ssim(images, other), torch.stack(expected).float(), rtol=0, atol=1e-4
    )


def test_the_smallest_image_is_one_window():
    assert 0 < ssim(pictures(1, 3, 11, 11), pictures(1, 3, 11, 11) * 0.9) < 1
    with pytest.raises(ValueError, match=r"10 x 32 pixels; SSIM needs at least 11 x 11"):
        ssim(pictures(1, 3, 10, 32), pictures(1, 3, 10, 32))


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_pairs_of_different_shapes_are_refused(measure):
    with pytest.raises(ValueError, match="of one shape"):
        measure(pictures(2, 3, 16, 16), pictures(1, 3, 16, 16))


@pytest.mark.parametrize("contrast", [0.0, 0.5, 1.0])
def test_sharpness_is_linear_in_the_contrast_of_the_reconstruction(contrast):
    images = pictures(2, 3, 9, 12)
    found = sharpness(images, 0.1 + contrast * images)
    torch.testing.assert_close(found, torch.full((2,), contrast), rtol=1e-4, atol=1e-6)


def test_sharpness_of_one_bright_pixel_is_by_hand():
    images = torch.zeros(1, 1, 5, 5)
    images[..., 2, 2] = 1  # 4 at the pixel, 1 at each of its neighbours
    spread = images.clone()
    spread[..., 2, 3] = 1  # two neighbours: 3 at both, 1 at the five around that are not cut off
    found = sharpness(images, spread)
    torch.testing.assert_close(found, torch.tensor([(3 + 3 + 5) / 8]))


def test_blur_lowers_sharpness_and_noise_raises_it():
    images = pictures(1, 3, 16, 16)
    blurred = F.avg_pool2d(images, 3, stride=1, padding=1)
    assert sharpness(images, blurred) < 0.5
    assert sharpness(blurred, blurred + 0.2 * pictures(1, 3, 16, 16, seed=1)) > 1


def test_image_without_an_edge_has_no_detail():
    assert detail(torch.full((2, 3, 8, 8), 0.3)).tolist() == pytest.approx([0, 0], abs=1e-6)
