"""OpenCV's filters, held against what their definitions give by hand."""

import math
from typing import get_args

import numpy as np
import pytest

from ldm.data.resampling import Kernel, resampled, taps

KERNELS = get_args(Kernel)
SMOOTH = ("bilinear", "bicubic", "lanczos")


def response(given, wanted, kernel):
    """The matrix (wanted, given) of a filter: what each pixel of an impulse becomes."""
    impulses = np.eye(given, dtype=np.float32)[:, None]  # (given, 1, given): one to a channel
    return resampled(impulses, wanted, 1, kernel)[:, 0]


def row(weights, first, length=16):
    expected = np.zeros(length)
    expected[first : first + len(weights)] = weights
    return expected


def lanczos(distance):
    turn = math.pi * distance
    return math.sin(turn) / turn * math.sin(turn / 4) / (turn / 4)


HALF = [lanczos(each) for each in (3.5, 2.5, 1.5, 0.5, 0.5, 1.5, 2.5, 3.5)]

# of 16 pixels, those that the second of four is made of, whose middle is at 5.5
BY_HAND = {
    "nearest": row([1], 4),
    "bilinear": row([0.5, 0.5], 5),
    "bicubic": row([-0.09375, 0.59375, 0.59375, -0.09375], 4),
    "area": row([0.25] * 4, 4),
    "lanczos": row(np.array(HALF) / sum(HALF), 2),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_quarter_of_the_size_weighs_pixels_as_worked_out_by_hand(kernel):
    np.testing.assert_allclose(response(16, 4, kernel)[1], BY_HAND[kernel], atol=1e-6)


@pytest.mark.parametrize("kernel", SMOOTH)
def test_a_third_of_the_size_is_the_middle_of_three_pixels(kernel):
    expected = np.eye(12)[1::3]
    np.testing.assert_allclose(response(12, 4, kernel), expected, atol=1e-6)


def test_twice_the_size_weighs_pixels_as_worked_out_by_hand():
    # the middle of the fifth of eight pixels is at 1.75
    cubic = [-0.03515625, 0.26171875, 0.87890625, -0.10546875]
    np.testing.assert_allclose(response(4, 8, "bilinear")[4], [0, 0.25, 0.75, 0], atol=1e-6)
    np.testing.assert_allclose(response(4, 8, "bicubic")[4], cubic, atol=1e-6)
    assert np.array_equal(response(4, 8, "nearest"), np.eye(4).repeat(2, axis=0))


def test_beyond_the_ends_the_last_pixel_goes_on():
    np.testing.assert_allclose(response(4, 8, "bilinear")[0], [1, 0, 0, 0], atol=1e-6)
    # its middle is at -0.25: what the pixels -2 and -1 would weigh, the first one does
    expected = [-0.03515625 + 0.26171875 + 0.87890625, -0.10546875, 0, 0]
    np.testing.assert_allclose(response(4, 8, "bicubic")[0], expected, atol=1e-6)


def test_an_area_counts_a_pixel_by_the_share_that_it_covers():
    expected = np.array([[2, 1, 0], [0, 1, 2]]) / 3
    np.testing.assert_allclose(response(3, 2, "area"), expected, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sides", [(16, 4), (17, 5), (5, 17), (7, 7), (9, 1)])
def test_a_constant_stays_what_it_is(kernel, sides):
    image = np.full((sides[0], sides[0], 2), 7.0, np.float32)
    np.testing.assert_allclose(resampled(image, sides[1], 3, kernel), 7, rtol=1e-6)


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic", "area"])
@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_a_ramp_stays_a_ramp_in_its_place(kernel, factor):
    columns = np.arange(8 * factor, dtype=np.float32)
    small = resampled(np.tile(columns[:, None], (factor, 1, 1)), 1, 8, kernel)[0, :, 0]
    middles = factor * (np.arange(8) + 0.5) - 0.5
    np.testing.assert_allclose(small[1:-1], middles[1:-1], rtol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_and_columns_are_filtered_alike(kernel):
    image = np.random.default_rng(0).random((12, 20, 3), dtype=np.float32)
    turned = resampled(image.swapaxes(0, 1), 5, 3, kernel).swapaxes(0, 1)
    np.testing.assert_allclose(resampled(image, 3, 5, kernel), turned, atol=1e-6)


def test_weights_that_are_kept_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        taps(8, 4, "bilinear")[1][0] = 2
