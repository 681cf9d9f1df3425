"""R1 and LeCam on discriminators whose gradients and averages are known."""

import pytest
import torch
from torch import nn

from ldm.losses.discipline import LeCam, r1_penalty


class Linear(nn.Module):
    """D(x) = <w, x>, one patch."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return (x * self.w).sum(dim=(1, 2, 3))[:, None, None, None]


def images(number=2, side=4):
    return torch.rand(number, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_r1_of_a_linear_discriminator_is_the_square_of_its_weight():
    judge = Linear()
    penalty = r1_penalty(judge, images())
    torch.testing.assert_close(penalty, judge.w.square().sum().expand(2))
    # half of it has the weight itself as its gradient
    (gradient,) = torch.autograd.grad(0.5 * penalty.mean(), judge.w)
    torch.testing.assert_close(gradient, judge.w)


@pytest.mark.parametrize("side", [4, 16])
def test_r1_of_separate_patches_does_not_depend_on_their_number(side):
    patches = nn.Conv2d(3, 1, 4, stride=4, bias=False)  # each looks at pixels of its own
    penalty = r1_penalty(patches, images(side=side))
    torch.testing.assert_close(penalty, patches.weight.square().sum().expand(2))


def test_r1_is_float32_under_autocast_and_leaves_the_images_alone():
    judge, x = nn.Conv2d(3, 1, 4), images()
    want = r1_penalty(judge, x)
    with torch.autocast("cpu", torch.bfloat16):
        got = r1_penalty(judge, x.bfloat16().float())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want)
    assert not x.requires_grad


def constant(value, patches=3):
    return torch.full((2, 1, patches, patches), float(value), requires_grad=True)


def test_lecam_of_constant_logits_is_their_distance_squared_twice():
    lecam = LeCam()
    for _ in range(3):
        penalty = lecam(constant(2.0), constant(-1.0))
        torch.testing.assert_close(penalty, torch.full((2,), 2 * 3.0**2))
    assert lecam.real / lecam.mass == pytest.approx(2.0)
    assert lecam.fake / lecam.mass == pytest.approx(-1.0)


def test_lecam_pulls_each_side_towards_the_average_of_the_other():
    real, fake = constant(2.0), constant(-1.0)
    LeCam()(real, fake).sum().backward()
    # 2 (D(x) - a_fake) over 9 patches: descending moves the logits together
    torch.testing.assert_close(real.grad, torch.full_like(real, 2 * 3.0 / 9))
    torch.testing.assert_close(fake.grad, torch.full_like(fake, -2 * 3.0 / 9))


def test_lecam_averages_are_geometric_series():
    lecam = LeCam(decay=0.5)
    for value in (1.0, 2.0, 4.0):
        lecam(constant(value), constant(0.0))
    weights = torch.tensor([0.25, 0.5, 1.0])
    want = (weights * torch.tensor([1.0, 2.0, 4.0])).sum() / weights.sum()
    torch.testing.assert_close(lecam.real / lecam.mass, want)


def test_lecam_goes_on_from_its_state():
    first, second = LeCam(), LeCam()
    first(constant(3.0), constant(1.0))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(constant(1.0), constant(0.0)), second(constant(1.0), constant(0.0)))
    assert set(first.state_dict()) == {"real", "fake", "mass"}
