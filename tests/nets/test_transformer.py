import pytest
import torch
import torch.nn.functional as F

from ldm.nets.transformer import GEGLU, BasicTransformerBlock, FeedForward, SpatialTransformer
from tests.reference import fill


def test_geglu_gates_its_first_half_by_its_second():
    layer, x = GEGLU(4, 3), torch.randn(2, 4)
    value, gate = layer.proj(x).split(3, dim=1)
    torch.testing.assert_close(layer(x), value * F.gelu(gate))


@pytest.mark.parametrize("glu", [True, False])
def test_feed_forward_acts_on_each_token_alone(glu):
    layer, x = FeedForward(6, dim_out=5, glu=glu), torch.randn(2, 4, 6)
    assert layer(x).shape == (2, 4, 5)
    torch.testing.assert_close(layer(x)[:, 1], layer(x[:, 1]))


def test_a_block_without_context_attends_to_itself_twice():
    block, x = fill(BasicTransformerBlock(12, 2, 6)), torch.randn(2, 5, 12)
    h = x + block.attn1(block.norm1(x))
    h = h + block.attn2(block.norm2(h))
    torch.testing.assert_close(block(x), h + block.ff(block.norm3(h)))


def test_spatial_transformer_starts_as_the_identity():
    x, context = torch.randn(2, 32, 3, 4), torch.randn(2, 5, 6)
    assert torch.equal(SpatialTransformer(32, 2, 8, context_dim=6)(x, context), x)


def test_spatial_transformer_does_not_care_where_cells_are():
    net = fill(SpatialTransformer(32, 2, 8, depth=2, context_dim=6))
    x, context = torch.randn(2, 32, 3, 4), torch.randn(2, 5, 6)
    turned = net(x.transpose(2, 3), context).transpose(2, 3)
    torch.testing.assert_close(net(x, context), turned, rtol=1e-4, atol=1e-5)
