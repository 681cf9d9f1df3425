"""Holes by name: how much they hide, and where."""

from functools import cache

import numpy as np
import pytest

from ldm.data.hole_presets import MOST, PRESETS

SIDE = 128
# mean, and what 5 % of the draws hide less than and more than, as the module says
SHARES = {
    "thin": (0.10, 0.02, 0.17),
    "medium": (0.16, 0.04, 0.28),
    "thick": (0.32, 0.07, 0.64),
    "half": (0.5, 0.5, 0.5),
    "outpaint": (0.58, 0.41, 0.73),
}
NAMES = sorted(PRESETS)


@cache
def draws(name):
    return [PRESETS[name](SIDE, SIDE, np.random.default_rng(seed)) for seed in range(500)]


def test_every_preset_has_its_shares():
    assert SHARES.keys() == PRESETS.keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_hides_the_share_that_it_says(name):
    shares = np.array([hidden.mean() for hidden in draws(name)])
    mean, low, high = SHARES[name]
    assert shares.mean() == pytest.approx(mean, abs=0.03)
    assert np.quantile(shares, 0.05) == pytest.approx(low, abs=0.04)
    assert np.quantile(shares, 0.95) == pytest.approx(high, abs=0.06)
    assert shares.min() > 0
    assert shares.max() <= (0.85 if name == "outpaint" else MOST)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(8, 8), (8, 50), (33, 17)])
def test_pictures_of_any_size_have_pixels_that_are_hidden_and_that_are_seen(name, size):
    for seed in range(20):
        hidden = PRESETS[name](*size, np.random.default_rng(seed))
        assert hidden.shape == size
        assert hidden.dtype == bool
        assert 0 < hidden.sum() < hidden.size


@pytest.mark.parametrize("name", ["thin", "medium", "thick"])
def test_strokes_and_boxes_hide_any_place(name):
    often = np.mean(draws(name), axis=0)
    assert often.min() > 0.2 * often.mean()


def test_thicker_presets_leave_thicker_holes():
    def thickness(hidden):
        """What share of the hidden pixels is hidden with its eight neighbours."""
        wide = np.pad(hidden, 1)
        near = [wide[i : i + SIDE, j : j + SIDE] for i in range(3) for j in range(3)]
        return np.logical_and.reduce(near).sum() / hidden.sum()

    means = [np.mean([thickness(each) for each in draws(n)]) for n in ("thin", "medium", "thick")]
    assert means[0] < 0.3 < 0.6 < means[1] < means[2]


@pytest.mark.parametrize("size", [(16, 24), (17, 9)])
def test_a_half_is_one_of_four_halves(size):
    height, width = size
    seen = set()
    for seed in range(40):
        hidden = PRESETS["half"](height, width, np.random.default_rng(seed))
        assert hidden.sum() in (height // 2 * width, height * (width // 2))
        seen.add((hidden[0].all(), hidden[-1].all(), hidden[:, 0].all(), hidden[:, -1].all()))
        rows, columns = hidden.any(axis=1), hidden.any(axis=0)
        assert np.array_equal(hidden, np.outer(rows, columns))
    sides = {tuple(row) for row in np.eye(4, dtype=bool).tolist()}
    assert seen == sides


def test_outpainting_hides_a_border_around_one_window():
    for hidden in draws("outpaint"):
        assert hidden[0].all()
        assert hidden[-1].all()
        assert hidden[:, 0].all()
        assert hidden[:, -1].all()
        seen = ~hidden
        rows, columns = seen.any(axis=1), seen.any(axis=0)
        assert np.array_equal(seen, np.outer(rows, columns))
        for line in (rows, columns):
            first, last = np.flatnonzero(line)[[0, -1]]
            assert line[first : last + 1].all()
            # 0.05 and 0.3 of 128 pixels are 6.4 and 38.4
            assert 6 <= first <= 38
            assert 6 <= SIDE - 1 - last <= 38
