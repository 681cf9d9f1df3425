"""Overlapping windows: coverage, a partition of unity, the published weights."""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

from ldm.tiling import BorderWeights, Window, border_distance, tiled_apply, windows
from tests.reference import Case


@pytest.mark.parametrize("size", [(4, 4), (5, 8)])
def test_border_distance_matches_the_published_table(size):
    case = Case("i_ldm_specifics", "delta_border")
    case.check(f"delta_border_{size[0]}x{size[1]}", border_distance(*size))


def test_border_weights_match_the_published_weighting():
    case = Case("i_ldm_specifics", "split_input")
    split = case.spec["split_input_params"]
    parts = windows((24, 24), tuple(split["ks"]), tuple(split["stride"]))
    weights = BorderWeights(split["clip_min_weight"], split["clip_max_weight"])
    per_crop = torch.stack([weights(part.height, part.width) for part in parts], dim=-1)
    case.check("weighting", per_crop[None, None])

    summed = torch.zeros(24, 24)
    for part in parts:
        part.of(summed).add_(weights(part.height, part.width))
    case.check("normalization", summed[None, None])


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (64, 20), (5, 40)])
@pytest.mark.parametrize("stride", [(16, 16), (8, 8), (5, 3)])
def test_windows_cover_every_pixel_and_stay_inside(size, stride):
    seen = torch.zeros(size)
    for part in windows(size, (16, 16), stride):
        crop = part.of(seen)
        assert crop.shape == (part.height, part.width)
        crop.add_(1)
    assert seen.min() >= 1


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (12, 40)])
@pytest.mark.parametrize("stride", [(8, 8), (5, 3)])
def test_a_tiled_pointwise_function_equals_the_function(size, stride):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    tiled = tiled_apply(
        lambda crop, _: crop.exp(), x, window=(16, 16), stride=stride, weights=BorderWeights()
    )
    # weights are float32 and appear in numerator and denominator: only their round-off is left
    torch.testing.assert_close(tiled, x.exp(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_tiled_function_may_change_the_resolution(factor):
    x = torch.randn(1, 2, 16, 24, dtype=torch.float64)
    up = tiled_apply(
        lambda crop, _: F.interpolate(crop, scale_factor=factor),
        x, window=(8, 8), stride=(4, 4), scale=factor,
    )  # fmt: skip
    torch.testing.assert_close(up, F.interpolate(x, scale_factor=factor), rtol=1e-6, atol=1e-7)
    down = tiled_apply(
        lambda crop, _: F.avg_pool2d(crop, factor),
        up, window=(8 * factor, 8 * factor), stride=(4 * factor, 4 * factor),
        scale=Fraction(1, factor),
    )  # fmt: skip
    torch.testing.assert_close(down, x, rtol=1e-6, atol=1e-7)


def test_a_function_never_sees_more_than_a_window():
    seen = []
    tiled_apply(
        lambda crop, window: seen.append((tuple(crop.shape[-2:]), window)) or crop,
        torch.zeros(1, 1, 20, 33), window=(8, 16), stride=(6, 16),
    )  # fmt: skip
    assert {shape for shape, _ in seen} == {(8, 16)}
    assert seen[-1][1] == Window(12, 17, 8, 16)


@pytest.mark.parametrize("stride", [0, 17, -1])
def test_a_stride_that_leaves_gaps_is_refused(stride):
    with pytest.raises(ValueError, match="gaps"):
        windows((32, 32), (16, 16), (16, stride))


def test_windows_that_do_not_scale_to_whole_pixels_are_refused():
    with pytest.raises(ValueError, match="multiples of 8"):
        tiled_apply(
            lambda crop, _: crop[..., ::8, ::8], torch.zeros(1, 1, 64, 64),
            window=(20, 20), stride=(16, 16), scale=Fraction(1, 8),
        )  # fmt: skip


@pytest.mark.parametrize("limits", [(0.0, 0.5), (0.5, 0.1)])
def test_border_weights_refuse_limits_that_divide_by_zero(limits):
    with pytest.raises(ValueError, match="clip_min"):
        BorderWeights(*limits)
