import pytest
import torch
import torch.nn.functional as F

from ldm.nets import linear as module
from ldm.nets.linear import Conv3x3, Linear, Pointwise, linear, on_tokens, prefers_convolution

# sums of at most 300 products in another order
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}


def outputs_and_gradients(function, x, *parameters):
    out = function(x, *parameters)
    cotangent = torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype)
    return [out, *torch.autograd.grad(out, (x, *parameters), cotangent)]


@pytest.mark.usefixtures("_on_amd")
@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 9, 5), (128, 40), (2, 256, 24), (3, 160, 300)])
def test_linear_equals_the_matrix_product(shape):
    x, weight, bias = torch.randn(shape), torch.randn(11, shape[-1]), torch.randn(11)
    given = [t.requires_grad_() for t in (x, weight, bias)]
    pairs = zip(
        outputs_and_gradients(linear, *given), outputs_and_gradients(F.linear, *given), strict=True
    )
    for got, want in pairs:
        # gradients of the weight are sums over up to 480 rows
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)


@pytest.fixture
def _on_amd(monkeypatch):
    monkeypatch.setattr(module, "_is_amd", lambda: True)


@pytest.mark.usefixtures("_on_amd")
def test_many_rows_in_single_precision_run_as_a_convolution():
    assert prefers_convolution(torch.zeros(2, 256, 24))
    assert not prefers_convolution(torch.zeros(2, 256, 24, dtype=torch.float64))
    assert not prefers_convolution(torch.zeros(2, 8, 24))
    assert not prefers_convolution(torch.zeros(24))


@pytest.mark.usefixtures("_on_amd")
def test_the_batch_does_not_decide_how_an_example_is_computed():
    assert not prefers_convolution(torch.zeros(64, 8, 24))
    with torch.autocast("cpu", torch.bfloat16):
        assert not prefers_convolution(torch.zeros(2, 256, 24))


def test_linear_takes_tokens_that_are_not_contiguous():
    x = torch.randn(2, 24, 256).transpose(1, 2)
    layer = Linear(24, 11)
    torch.testing.assert_close(layer(x), layer(x.contiguous()), **TOLERANCE)


@pytest.mark.usefixtures("_on_amd")
@pytest.mark.parametrize("size", [(4, 4), (40, 30)])
def test_pointwise_convolution_equals_its_product_on_tokens(size):
    conv = Pointwise(24, 11)
    x = torch.randn(2, 24, *size)
    tokens = on_tokens(conv, x.flatten(2).transpose(1, 2))
    want = F.conv2d(x, conv.weight, conv.bias)
    torch.testing.assert_close(conv(x), want, **TOLERANCE)
    torch.testing.assert_close(tokens.transpose(1, 2).reshape(want.shape), want, **TOLERANCE)


@pytest.mark.parametrize("kind", [Conv3x3, Pointwise])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [(4, 4), (2, 8), (12, 10)])
def test_convolution_in_half_precision_equals_single_precision(kind, batch, size):
    conv, x = kind(16, 8), torch.randn(batch, 16, *size)
    want = conv(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = conv(x.bfloat16())
    assert got.dtype == torch.bfloat16
    # bfloat16 has 8 significant bits
    torch.testing.assert_close(got.float(), want, rtol=2e-2, atol=2e-2)
