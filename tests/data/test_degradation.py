"""Blind degradation: each of its steps by its definition, and the whole by what it may not do."""

import io

import numpy as np
import pytest
from PIL import Image

from ldm.config import ConfigError
from ldm.data.degradation import (
    FULL,
    LIGHT,
    Ranges,
    anisotropic,
    blurred,
    compressed,
    degraded,
    down_sampled,
    isotropic,
    nearest_shifted,
    noisy,
)
from ldm.data.resampling import resampled


def generator(seed=0):
    return np.random.default_rng(seed)


def photograph(side=32, channels=3):
    """Smooth colours with an edge, in 0..1."""
    rows, columns = np.mgrid[0:side, 0:side] / side
    planes = [0.2 + 0.6 * rows, 0.8 - 0.5 * columns, np.where(rows + columns > 1, 0.7, 0.3)]
    return np.stack(planes[:channels], axis=2).astype(np.float32)


def moments(kernel):
    """Mean and covariance of the weights' places, in x and y."""
    offsets = np.arange(kernel.shape[0]) - kernel.shape[0] // 2
    y, x = np.meshgrid(offsets, offsets, indexing="ij")
    mean = np.array([(kernel * x).sum(), (kernel * y).sum()])
    centred = np.stack([x - mean[0], y - mean[1]])
    return mean, np.einsum("hw,ihw,jhw->ij", kernel, centred, centred)


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_an_isotropic_blur_has_the_width_and_the_place_that_it_says(shift):
    kernel = isotropic(21, 1.7, shift)
    mean, covariance = moments(kernel)
    assert kernel.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(mean, [shift, shift], atol=1e-5)
    np.testing.assert_allclose(covariance, 1.7**2 * np.eye(2), atol=1e-3)


@pytest.mark.parametrize("angle", [0.0, 0.4, np.pi / 2, 2.5])
def test_an_anisotropic_blur_has_its_widths_along_its_axes(angle):
    mean, covariance = moments(anisotropic(21, (2.0, 0.8), angle))
    axis = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-axis[1], axis[0]])
    np.testing.assert_allclose(mean, 0, atol=1e-12)
    expected = 4 * np.outer(axis, axis) + 0.64 * np.outer(across, across)
    np.testing.assert_allclose(covariance, expected, atol=2e-3)


@pytest.mark.parametrize("kernel", [isotropic(7, 0.01), anisotropic(21, (0.02, 0.01), 1.0)])
def test_the_narrowest_blur_is_none(kernel):
    image = photograph()
    np.testing.assert_allclose(blurred(image, kernel), image, atol=1e-6)


@pytest.mark.parametrize("side", [4, 9, 30])
def test_a_blur_is_the_weighted_mean_by_reflection_beyond_the_edges(side):
    image = generator(1).random((side, side + 3, 2), dtype=np.float32)
    kernel = generator(2).random((7, 7))
    wide = np.pad(image, ((3, 3), (3, 3), (0, 0)), mode="reflect")
    expected = np.zeros_like(image)
    for i in range(7):
        for j in range(7):
            expected += kernel[i, j] * wide[i : i + side, j : j + side + 3]
    np.testing.assert_allclose(blurred(image, kernel), expected, rtol=2e-5)


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_the_shifted_nearest_pixel_stays_in_the_middle_of_those_it_stands_for(factor):
    columns = np.arange(16 * factor, dtype=np.float32) / (16 * factor)
    ramp = np.tile(columns[None, :, None], (16 * factor, 1, 1))
    small = nearest_shifted(ramp, factor, 0.3 * factor)
    middles = (factor * (np.arange(16) + 0.5) - 0.5) / (16 * factor)
    inside = slice(12 // factor + 1, -(12 // factor + 1))
    # the 21 pixels of a Gaussian that is moved by 3.5 are not quite all of it
    np.testing.assert_allclose(small[8, inside, 0], middles[inside], atol=2e-3 / factor)


def test_every_way_to_make_an_image_smaller_is_taken_and_keeps_a_constant():
    image = np.full((16, 24, 3), 0.25, np.float32)
    for seed in range(20):
        np.testing.assert_allclose(down_sampled(image, 4, generator(seed)), 0.25, atol=1e-6)
    image = generator().random((16, 16, 1), dtype=np.float32)
    plain = [resampled(image, 4, 4, way) for way in ("bilinear", "bicubic", "area")]
    found = [down_sampled(image, 4, generator(seed)) for seed in range(200)]
    counts = [sum(np.array_equal(each, way) for each in found) for way in plain]
    # a fifth of 200 each, 4 standard errors of 5.7
    assert all(abs(count - 40) < 23 for count in counts)
    assert len({each.tobytes() for each in found}) > 60, "the other two have draws of their own"


def test_noise_is_as_strong_as_it_says_and_of_three_kinds():
    image = np.full((64, 64, 3), 0.5, np.float32)
    counts = {"grey": 0, "colour": 0, "correlated": 0}
    for seed in range(200):
        noise = (noisy(image, generator(seed), (10, 10)) - image).reshape(-1, 3) * 255 / 10
        assert (noise**2).mean() == pytest.approx(1, abs=0.12)
        assert abs(noise.mean()) < 0.08
        correlations = np.abs(np.corrcoef(noise.T) - np.eye(3))
        if np.ptp(noise, axis=1).max() < 1e-5:
            counts["grey"] += 1
        else:
            counts["correlated" if correlations.max() > 0.07 else "colour"] += 1
    # 4 standard errors of 200 draws with probabilities 0.4, 0.4 and 0.2
    assert abs(counts["grey"] - 80) < 28
    assert abs(counts["colour"] - 80) < 28
    assert abs(counts["correlated"] - 40) < 23


def test_the_strength_of_noise_is_drawn_from_its_range():
    image = np.full((32, 32, 1), 0.5, np.float32)
    levels = [255 * (noisy(image, generator(seed), (1, 25)) - 0.5).std() for seed in range(200)]
    assert 0.8 < min(levels) < 3
    assert 23 < max(levels) < 28
    assert np.mean(levels) == pytest.approx(13, abs=2.1)


@pytest.mark.parametrize("channels", [1, 3])
def test_compression_is_jpegs_of_the_quality_that_is_asked_for(channels):
    image = generator().random((16, 24, channels), dtype=np.float32)
    levels = np.rint(image * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels.squeeze()).save(file, "JPEG", quality=40)
    expected = np.asarray(Image.open(file)).reshape(image.shape)
    np.testing.assert_allclose(compressed(image, 40) * 255, expected, atol=1e-4)
    errors = [np.abs(compressed(image, quality) - image).mean() for quality in (95, 60, 20)]
    assert errors == sorted(errors)


@pytest.mark.parametrize("ranges", [FULL, LIGHT])
@pytest.mark.parametrize(("factor", "channels"), [(1, 3), (2, 1), (3, 3), (4, 3), (8, 3)])
def test_a_degraded_image_is_smaller_and_has_eight_bits(ranges, factor, channels):
    image = photograph(48, channels)[:24]
    for seed in range(4):
        small = degraded(image, factor, generator(seed), ranges)
        assert small.shape == (24 // factor, 48 // factor, channels)
        assert small.dtype == np.float32
        levels = small * 255
        np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
        assert np.array_equal(small, degraded(image, factor, generator(seed), ranges))


def test_every_draw_degrades_otherwise():
    image = photograph()
    assert len({degraded(image, 4, generator(seed)).tobytes() for seed in range(20)}) == 20


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_what_is_shown_stays_in_its_place(factor):
    # a ramp that is antisymmetric about the middle stays so, but for the noise of the mean
    side = 32
    columns = 0.5 + (np.arange(side, dtype=np.float32) - 15.5) / 64
    ramp = np.tile(columns[None, :, None], (side, 1, 1))
    small = np.mean([degraded(ramp, factor, generator(seed)) for seed in range(300)], axis=0)
    line = small.mean(axis=(0, 2))
    # half a pixel would be 2 / 128 = 0.016
    np.testing.assert_allclose(line + line[::-1], 1, atol=0.006)
    assert np.all(np.diff(line) > 0.5 * factor / 64 * 0.5)


def test_noise_comes_before_or_after_the_image_is_made_smaller():
    # of a constant image noise alone is seen: as strong as it says when it comes afterwards, and
    # weakened by every filter when it comes before
    image = np.full((64, 64, 1), 0.5, np.float32)
    ranges = Ranges(blur=0.01, noise=(20, 20), quality=(95, 95))
    deviations = np.array(
        [255 * degraded(image, 2, generator(seed), ranges).std() for seed in range(100)]
    )
    as_strong = np.abs(deviations - 20) < 2
    # half of the draws, and 4 standard errors; before, `nearest` may keep it as strong too
    assert 30 < as_strong.sum() < 80
    assert (deviations < 15).sum() > 15


def test_light_changes_an_image_less():
    image = photograph()
    plain = resampled(image, 8, 8, "area")
    errors = [
        np.mean([np.abs(degraded(image, 4, generator(s), each) - plain).mean() for s in range(30)])
        for each in (LIGHT, FULL)
    ]
    assert errors[0] < 0.6 * errors[1]


@pytest.mark.parametrize("channels", [2, 4, 13])
def test_channels_that_jpeg_cannot_hold_are_refused(channels):
    image = np.zeros((8, 8, channels), np.float32)
    with pytest.raises(ConfigError, match=f"expected 1 or 3 channels, got {channels}"):
        degraded(image, 2, generator())
