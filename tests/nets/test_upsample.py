import pytest
import torch
import torch.nn.functional as F

from ldm.nets.upsample import upsample_conv


def upsample_then_conv(x, weight, bias):
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)


@pytest.mark.parametrize("size", [(3, 4), (16, 16), (20, 31)])
def test_upsampling_inside_a_convolution_equals_doing_it_before(size):
    x, weight, bias = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 5, *size), (7, 5, 3, 3), (7,))
    )
    cotangent = torch.randn(2, 7, 2 * size[0], 2 * size[1], dtype=torch.float64)
    for function in (upsample_conv, upsample_then_conv):
        out = function(x, weight, bias)
        gradients = torch.autograd.grad(out, (x, weight, bias), cotangent)
        if function is upsample_conv:
            got = (out, *gradients)
    for a, b in zip(got, (out, *gradients), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-11)


def test_taps_are_added_before_they_are_rounded_to_half_precision():
    x = torch.ones(1, 1, 16, 16)
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 0, 0], weight[0, 0, 0, 1] = 1 + 2**-10, -1  # round to the same bfloat16 but 1
    with torch.autocast("cpu", torch.bfloat16):
        out = upsample_conv(x, weight, None)
    assert out[0, 0, 8, 9] == 2**-10  # both taps on copies of one cell
