"""Between two noises."""

import math

import pytest
import torch

from ldm.diffusion.draws import KeyedDraws
from ldm.diffusion.interpolation import slerp

A = KeyedDraws([1, 2, 3], 0).normal((4, 8, 8), "x_T")
B = KeyedDraws([4, 5, 6], 0).normal((4, 8, 8), "x_T")


def norms(x):
    return x.double().flatten(1).norm(dim=1)


def test_the_ends_are_the_noises_themselves_to_the_last_bit():
    assert torch.equal(slerp(A, B, 0.0), A)
    assert torch.equal(slerp(A, B, 1.0), B)
    mixed = slerp(A, B, torch.tensor([0.0, 1.0, 0.5]))
    assert torch.equal(mixed[0], A[0])
    assert torch.equal(mixed[1], B[1])


def test_equal_shares_are_equal_angles_in_the_plane():
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    for share in (0.25, 0.5, 0.75):
        angle = share * math.pi / 2
        want = torch.tensor([[2 * math.cos(angle), 2 * math.sin(angle)]])
        torch.testing.assert_close(slerp(a, b, share), want)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_the_norm_goes_evenly_from_one_to_the_other(share):
    between = slerp(A, 3 * B, share)
    torch.testing.assert_close(
        norms(between), (1 - share) * norms(A) + share * norms(3 * B), rtol=1e-6, atol=0
    )
    linear = (1 - share) * A + share * B
    assert (norms(linear) < 0.95 * norms(slerp(A, B, share))).all()


def test_what_is_between_gaussian_noises_is_gaussian_noise():
    keys = range(4000)
    a, b = (KeyedDraws(keys, seed).normal((25,), "x_T") for seed in (0, 1))
    z = slerp(a, b, 0.5)
    # 4 standard errors of each moment of 100000 normal numbers
    assert abs(z.mean()) < 4 * 1e-5**0.5
    assert abs(z.var() - 1) < 4 * 2e-5**0.5


def test_each_image_has_an_angle_of_its_own():
    both = slerp(A, B, 0.3)
    for index in range(3):
        alone = slerp(A[index : index + 1], B[index : index + 1], 0.3)
        torch.testing.assert_close(both[index : index + 1], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("apart", [0.0, 1e-12, 1e-9, 1e-5, 1e-3])
def test_nearly_parallel_noises_are_joined_by_a_line(apart):
    a = A.double()
    b = a + apart * B.double()
    between = slerp(a, b, 0.25)
    torch.testing.assert_close(between, 0.75 * a + 0.25 * b, rtol=0, atol=1e-12 + 10 * apart**2)


def test_zeros_and_opposites_give_numbers():
    zero = torch.zeros_like(A)
    assert torch.equal(slerp(zero, B, 0.5), B / 2)
    assert torch.equal(slerp(A, zero, 0.5), A / 2)
    assert torch.equal(slerp(zero, zero, 0.5), zero)
    assert torch.equal(slerp(A, -A, 0.25), A / 2)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), torch.tensor([0.0, 2.0, 1.0])])
def test_a_share_is_one(share):
    with pytest.raises(ValueError, match=r"share is .*, expected 0 to 1"):
        slerp(A, B, share)
