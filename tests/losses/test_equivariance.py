"""Transforms of latents and of their images, and when they are drawn."""

import pytest
import torch

from ldm.losses.equivariance import Equivariance, Transform


def test_latents_and_images_keep_their_ratio():
    z, x = torch.randn(2, 4, 10, 6), torch.randn(2, 3, 80, 48)
    for step in range(50):
        transform = Equivariance(p=1.0).draw(0, step, factor=8)
        small, image = transform.of_latents(z), transform.of_images(x)
        assert image.shape[2:] == (8 * small.shape[2], 8 * small.shape[3])
        assert min(small.shape[2:]) >= 1


@pytest.mark.parametrize("turns", range(4))
def test_rotation_alone_moves_pixels_and_changes_none(turns):
    x = torch.randn(2, 3, 8, 4)
    assert torch.equal(Transform(1.0, turns, 2).of_images(x), x.rot90(turns, (2, 3)))
    assert torch.equal(Transform(1.0, (4 - turns) % 4, 2).of_images(x.rot90(turns, (2, 3))), x)


def test_smaller_images_keep_their_level():
    x = torch.full((1, 3, 32, 32), 0.3)
    small = Transform(0.4, 1, 8).of_images(x)
    torch.testing.assert_close(small, torch.full((1, 3, 16, 16), 0.3))


def test_gradient_goes_through_to_the_latent():
    z = torch.randn(1, 2, 8, 8, dtype=torch.float32, requires_grad=True)
    Transform(0.5, 3, 1).of_latents(z).sum().backward()
    # 16 cells in each of two channels, each a mean
    assert z.grad.sum().item() == pytest.approx(32.0, rel=1e-4)


def test_draw_is_a_function_of_seed_and_step():
    equivariance = Equivariance()
    first = [equivariance.draw(1, step, 8) for step in range(200)]
    assert first == [Equivariance().draw(1, step, 8) for step in range(200)]
    assert first != [equivariance.draw(2, step, 8) for step in range(200)]
    drawn = [each for each in first if each is not None]
    assert 60 < len(drawn) < 140  # four deviations from a half
    assert {each.turns for each in drawn} == {0, 1, 2, 3}
    assert min(each.scale for each in drawn) >= 0.25
    assert max(each.scale for each in drawn) <= 1


@pytest.mark.parametrize(("p", "number"), [(0.0, 0), (1.0, 100)])
def test_probability_nought_and_one(p, number):
    drawn = [Equivariance(p).draw(0, step, 8) for step in range(100)]
    assert sum(each is not None for each in drawn) == number


def test_each_kind_can_be_left_out():
    steps = [(0, step, 8) for step in range(40)]
    assert {Equivariance(1.0, rotations=False).draw(*s).turns for s in steps} == {0}
    assert {Equivariance(1.0, scales=None).draw(*s).scale for s in steps} == {1.0}


def test_smallest_side_is_that_of_the_lowest_scale():
    assert Equivariance().smallest_side(256, factor=8) == 64
    assert Equivariance(scales=None).smallest_side(256, factor=8) == 256
    assert Equivariance(scales=[0.01, 1.0]).smallest_side(256, factor=8) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": 1.5}, "p: 1.5; expected a probability"),
        ({"scales": [0.5]}, r"scales: \[0.5\]; expected the lowest and the highest"),
        ({"scales": [0.0, 1.0]}, r"scales: \[0.0, 1.0\]"),
        ({"scales": [0.5, 2.0]}, r"scales: \[0.5, 2.0\]"),
        ({"scales": None, "rotations": False}, "rotations: false, and no scales"),
    ],
)
def test_wrong_values_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        Equivariance(**arguments)
