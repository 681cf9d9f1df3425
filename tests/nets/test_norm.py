import pytest
import torch
import torch.nn.functional as F

from ldm.nets.norm import NormSiLU, group_norm, norm_silu


def values_and_gradients(function, x, norm):
    out = function(x, norm)
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(out.shape, generator=generator).to(out.dtype)
    return [out, *torch.autograd.grad(out, (x, *norm.parameters()), cotangent)]


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "strided"])
def test_norm_and_silu_at_once_equal_one_after_the_other(layout):
    norm = group_norm(64, eps=1e-3).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 64, 5, 8, dtype=torch.float64)
    if layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        x = x[..., ::2]
    x.requires_grad_()
    got = values_and_gradients(norm_silu, x, norm)
    want = values_and_gradients(lambda x, norm: F.silu(norm(x)), x, norm)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_norm_and_silu_keep_half_precision():
    norm, x = group_norm(32), torch.randn(2, 32, 4, 4)
    out = norm_silu(x.bfloat16(), norm)
    assert out.dtype == torch.bfloat16
    # bfloat16 has 8 significant bits
    torch.testing.assert_close(out.float(), F.silu(norm(x)), rtol=2e-2, atol=2e-2)


def test_norm_and_silu_keep_only_the_input():
    norm, x = group_norm(32), torch.randn(2, 32, 8, 8, requires_grad=True)
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        norm_silu(x, norm)
    assert [tensor.shape for tensor in kept if tensor.numel() > 64] == [x.shape]


def test_layers_behind_a_norm_run_in_a_row():
    row = NormSiLU(32, torch.nn.Conv2d(32, 8, 1), torch.nn.Flatten())
    x = torch.randn(2, 32, 4, 4)
    norm, silu, conv, flatten = row
    torch.testing.assert_close(row(x), flatten(conv(silu(norm(x)))))


def test_a_width_that_groups_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"40 channels .* in 32 groups; the nearest .* 32"):
        group_norm(40)


@pytest.mark.parametrize("function", [norm_silu, lambda x, norm: norm(x)])
@pytest.mark.parametrize("size", [(16, 32), (5, 6)])
def test_channels_last_gradients_in_half_precision_are_those_of_double(function, size):
    norm = group_norm(64)
    torch.nn.init.normal_(norm.weight)
    x = (1 + 2 * torch.randn(2, 64, *size)).bfloat16()
    got = values_and_gradients(
        function, x.contiguous(memory_format=torch.channels_last).requires_grad_(), norm
    )
    want = values_and_gradients(function, x.double().requires_grad_(), norm.double())
    assert got[1].is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(got, want, strict=True):
        # bfloat16 has 8 significant bits
        assert (a.double() - b).norm() < 1e-2 * b.norm()


def test_channels_last_gradients_are_close_where_sums_are_long():
    norm = group_norm(32)
    x = torch.randn(1, 32, 128, 128) + 1
    cotangent = torch.randn(1, 32, 128, 128)
    last = x.bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    got = torch.autograd.grad(norm(last), norm.parameters(), cotangent.bfloat16())
    want = torch.autograd.grad(norm(x), norm.parameters(), cotangent)
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() < 1e-2 * b.norm()
