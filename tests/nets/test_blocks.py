import pytest
import torch
from torch import nn

from ldm.nets.blocks import Downsample, ResBlock, TimestepEmbedSequential, Upsample
from ldm.nets.transformer import SpatialTransformer
from tests.reference import fill


@pytest.mark.parametrize("scale_shift", [True, False])
def test_residual_block_starts_as_its_skip_connection(scale_shift):
    block = ResBlock(32, 8, use_scale_shift_norm=scale_shift)
    x = torch.randn(2, 32, 4, 4)
    assert torch.equal(block(x, torch.randn(2, 8)), x)


def test_residual_block_depends_on_the_time():
    block, x = fill(ResBlock(32, 8)), torch.randn(2, 32, 4, 4)
    assert not torch.allclose(block(x, torch.zeros(2, 8)), block(x, torch.ones(2, 8)))


@pytest.mark.parametrize(("switch", "size"), [("up", 32), ("down", 8)])
def test_residual_block_resamples_both_branches(switch, size):
    block = fill(ResBlock(32, 8, **{switch: True}))
    x, emb = torch.randn(2, 32, 16, 16), torch.randn(2, 8)
    assert block(x, emb).shape == (2, 32, size, size)
    norm, silu, conv = block.in_layers
    h = conv(block.h_upd(silu(norm(x)))) + block.emb_layers(emb)[:, :, None, None]
    want = block.x_upd(x) + block.out_layers(h)
    torch.testing.assert_close(block(x, emb), want, rtol=1e-4, atol=1e-5)


def test_resampling_without_weights_is_nearest_and_mean():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    up = Upsample(1, use_conv=False)(x)
    assert torch.equal(up, x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert torch.equal(Downsample(1, use_conv=False)(up), x)


def test_upsampling_may_pad_in_another_way():
    layer, x = Upsample(8, use_conv=True, padding=0), torch.randn(1, 8, 20, 20)
    padded = Upsample(8, use_conv=True)
    padded.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), padded(x)[..., 1:-1, 1:-1], rtol=1e-4, atol=1e-5)


def test_a_row_gives_each_layer_what_it_takes():
    row = TimestepEmbedSequential(
        nn.Conv2d(3, 32, 1), ResBlock(32, 8), SpatialTransformer(32, 2, 8, context_dim=6)
    )
    x, emb, context = torch.randn(2, 3, 4, 4), torch.randn(2, 8), torch.randn(2, 5, 6)
    conv, block, transformer = fill(row)
    torch.testing.assert_close(row(x, emb, context), transformer(block(conv(x), emb), context))
