"""Differentiable augmentation: shapes, gradients, extremes and equal numbers."""

import pytest
import torch

from ldm.diffusion.draws import KeyedDraws
from ldm.losses.augmentation import DifferentiableAugmentation

NAMES = ("color", "translation", "cutout")


def images(number=3, side=(16, 12)):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(number, 3, *side, generator=generator, dtype=torch.float64) * 2 - 1


def numbers(number=3, value=None):
    if value is not None:
        return torch.full((number, 7), value)
    return torch.rand(number, 7, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("names", [[name] for name in NAMES] + [list(NAMES)])
def test_augmentation_keeps_the_shape_and_is_differentiable(names):
    augment = DifferentiableAugmentation(names)
    x = images(2, (4, 6)).requires_grad_()
    changed = augment(x, numbers(2))
    assert changed.shape == x.shape
    assert not torch.equal(changed, x)
    assert torch.autograd.gradcheck(lambda x: augment(x, numbers(2)), x)
    assert torch.autograd.gradgradcheck(lambda x: augment(x, numbers(2)).pow(3), x)


@pytest.mark.parametrize("name", NAMES)
def test_equal_numbers_make_equal_changes_whatever_the_batch(name):
    augment = DifferentiableAugmentation([name])
    whole = augment(images(), numbers())
    for i in range(3):
        alone = augment(images()[i : i + 1], numbers()[i : i + 1])
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-12, atol=1e-12)


def test_middle_numbers_leave_colours_and_place_alone():
    x = images()
    for name in ("color", "translation"):
        changed = DifferentiableAugmentation([name])(x, numbers(value=0.5))
        torch.testing.assert_close(changed, x, rtol=1e-12, atol=1e-12)


def test_brightness_adds_and_saturation_zero_is_grey():
    x = images(1)
    number = torch.tensor([[0.75, 0.5, 0.5, 0, 0, 0, 0]])
    augment = DifferentiableAugmentation(["color"])
    torch.testing.assert_close(augment(x, number), x + 0.25, rtol=1e-12, atol=1e-12)
    grey = augment(x, torch.tensor([[0.5, 0.0, 0.5, 0, 0, 0, 0]]))
    torch.testing.assert_close(grey, x.mean(dim=1, keepdim=True).expand_as(x))


@pytest.mark.parametrize(("value", "shift"), [(0.0, -2), (1 - 2**-24, 2)])
def test_translation_reaches_an_eighth_either_way_and_fills_with_zeros(value, shift):
    x = images(side=(16, 16))
    moved = DifferentiableAugmentation(["translation"])(x, numbers(value=value))
    want = torch.zeros_like(x)
    there, from_ = (slice(2, None), slice(None, -2))[:: 1 if shift > 0 else -1]
    want[..., there, there] = x[..., from_, from_]
    assert torch.equal(moved, want)


def test_cutout_takes_a_quarter_from_the_middle_and_less_from_a_corner():
    x = torch.ones(1, 3, 16, 16)
    cut = DifferentiableAugmentation(["cutout"])
    assert (cut(x, numbers(1, 0.5)) == 0).double().mean() == 0.25
    assert (cut(x, numbers(1, 0.0)) == 0).double().mean() == 0.25 / 4


def test_numbers_of_an_example_are_its_own():
    augment = DifferentiableAugmentation(NAMES)
    both = augment.draw(KeyedDraws([3, 5], seed=1, step=7))
    assert both.shape == (2, 7)
    assert torch.equal(both[1:], augment.draw(KeyedDraws([5], seed=1, step=7)))
    assert len(both.unique()) == 14
    assert not torch.equal(both, augment.draw(KeyedDraws([3, 5], seed=1, step=8)))


def test_unknown_augmentation_names_the_nearest():
    with pytest.raises(ValueError, match=r"^disc_augment: 'colour'; .*did you mean 'color'"):
        DifferentiableAugmentation(["colour"])
