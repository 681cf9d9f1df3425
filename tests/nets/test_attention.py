import pytest
import torch

from ldm.nets.attention import (
    AttentionBlock,
    AttentionPool2d,
    CrossAttention,
    LinearAttention,
    attend,
    heads_of,
)


def naive(q, k, v, mask=None):
    """Softmax attention as the paper writes it."""
    logits = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, torch.finfo(q.dtype).min)
    return logits.softmax(dim=3) @ v


def tensors(batch, heads, rows, columns, width, dtype=torch.float64):
    """q, k, v and a cotangent, strided as the layers hand them over: tokens first in memory."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, n, heads, width, generator=generator, dtype=torch.float64)
        .to(dtype)
        .transpose(1, 2)
        .requires_grad_(i < 3)
        for i, n in enumerate((rows, columns, columns, rows))
    ]


def gradients(function, q, k, v, g, *mask):
    out = function(q, k, v, *mask)
    return [out, *torch.autograd.grad(out, (q, k, v), g)]


@pytest.mark.parametrize("shape", [(2, 3, 5, 7, 4), (1, 1, 16, 16, 8), (2, 8, 1, 77, 2)])
def test_attention_equals_the_naive_softmax(shape):
    q, k, v, g = tensors(*shape)
    for got, want in zip(gradients(attend, q, k, v, g), gradients(naive, q, k, v, g), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_masked_attention_equals_the_naive_softmax():
    q, k, v, g = tensors(2, 3, 5, 7, 4)
    mask = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[0, 0, 2] = False  # may look nowhere
    got, want = (gradients(function, q, k, v, g, mask) for function in (attend, naive))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_row_that_may_look_nowhere_looks_everywhere():
    q, k, v, _ = tensors(1, 1, 3, 4, 2)
    out = attend(q, k, v, torch.zeros(1, 1, 3, 4, dtype=torch.bool))
    torch.testing.assert_close(out, v.mean(dim=2, keepdim=True).expand_as(out))


# (heads, rows, columns, width) and the way they take on a CPU
WAYS = {
    "half, as two products": (torch.bfloat16, (4, 40, 24, 8)),
    "half, fused": (torch.bfloat16, (5, 700, 400, 8)),
    "single, fused": (torch.float32, (4, 64, 64, 16)),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_on_a_cpu_equals_double_precision(way):
    dtype, shape = WAYS[way]
    given = tensors(1, *shape, dtype=dtype)
    exact = gradients(naive, *[t.detach().double().requires_grad_() for t in given])
    # rounding of the inputs of each product, relative to the largest output
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for got, want in zip(gradients(attend, *given), exact, strict=True):
        assert got.dtype == dtype
        assert (got.double() - want).abs().max() < tolerance * want.abs().max()


def test_self_attention_is_cross_attention_to_itself():
    layer = CrossAttention(12, heads=2, dim_head=4)
    x = torch.randn(2, 5, 12)
    assert torch.equal(layer(x), layer(x, x))


def test_cross_attention_ignores_what_is_masked():
    layer = CrossAttention(12, 6, heads=2, dim_head=4)
    x, context = torch.randn(2, 5, 12), torch.randn(2, 3, 6)
    mask = torch.tensor([[True, True, False]] * 2)
    torch.testing.assert_close(layer(x, context, mask), layer(x, context[:, :2]))


def test_attention_block_starts_as_the_identity():
    x = torch.randn(2, 32, 3, 3)
    assert torch.equal(AttentionBlock(32, num_heads=4)(x), x)


def test_attention_pool_does_not_care_for_order_without_positions():
    pool = AttentionPool2d(4, 32, 8)
    torch.nn.init.zeros_(pool.positional_embedding)
    x = torch.randn(2, 32, 4, 4)
    torch.testing.assert_close(pool(x), pool(x.flip(2)), rtol=1e-5, atol=1e-5)


def test_linear_attention_of_constant_keys_is_the_mean_of_values():
    layer = LinearAttention(8, heads=1, dim_head=8)
    with torch.no_grad():
        layer.to_qkv.weight.zero_()
        layer.to_qkv.weight[:8] = torch.eye(8)[..., None, None]  # q = x, k = 0
        layer.to_qkv.weight[16:] = torch.eye(8)[..., None, None]  # v = x
        layer.to_out.weight.copy_(torch.eye(8)[..., None, None])
    x = torch.randn(1, 8, 3, 3)
    want = x.sum(dim=1, keepdim=True) * x.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(layer(x), want + layer.to_out.bias[:, None, None])


def test_a_width_per_head_decides_over_a_number_of_heads():
    assert heads_of(96, num_heads=5, num_head_channels=32) == 3
    assert heads_of(96, num_heads=6) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 5}, "num_heads=5 does not divide the 96 channels"),
        ({"num_heads": -1}, "num_heads=-1 does not divide"),
        ({"num_head_channels": 36}, "num_head_channels=36 does not divide"),
    ],
)
def test_heads_that_do_not_divide_the_channels_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        heads_of(96, **arguments)
