import pytest
import torch
import torch.nn.functional as F

from ldm.nets.upsample import upsample_conv


def upsample_then_conv(x, weight, bias):
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)


@pytest.mark.parametrize("size", [(3, 4), (16, 16), (20, 31)])
def test_upsampling_inside_a_convolution_equals_doing_it_before(size):
    x, weight, bias = (
        torch.randn(shape, requires_grad=True) for shape in ((2, 5, *size), (7, 5, 3, 3), (7,))
    )
    cotangent = torch.randn(2, 7, 2 * size[0], 2 * size[1])
    for function in (upsample_conv, upsample_then_conv):
        out = function(x, weight, bias)
        gradients = torch.autograd.grad(out, (x, weight, bias), cotangent)
        if function is upsample_conv:
            got = (out, *gradients)
    for a, b in zip(got, (out, *gradients), strict=True):
        # float32 sums of up to 2480 products in another order
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_half_precision_upsamples_before_the_convolution():
    x, weight = torch.randn(1, 4, 16, 16), torch.randn(4, 4, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(upsample_conv(x, weight, None), upsample_then_conv(x, weight, None))
