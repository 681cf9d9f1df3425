import pytest
import torch

from ldm.nets.unet_encoder import EncoderUNetModel
from tests.reference import fill

SMALL = {
    "image_size": 16,
    "in_channels": 3,
    "out_channels": 7,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 2],
    "num_head_channels": 16,
}


@pytest.mark.parametrize("pool", ["adaptive", "attention", "spatial", "spatial_v2"])
def test_every_pool_gives_one_vector_per_image(pool):
    net = fill(EncoderUNetModel(**SMALL, pool=pool))
    out = net(torch.randn(2, 3, 16, 16), torch.tensor([1, 900]))
    assert out.shape == (2, 7)
    out.square().sum().backward()
    # the last layer's bias in front of a head always has a gradient
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("given", [{"num_heads": 4}, {"num_heads": 1, "num_head_channels": 16}])
def test_attention_pool_has_heads_of_the_given_number_or_width(given):
    net = EncoderUNetModel(**{**SMALL, "num_head_channels": -1, **given}, pool="attention")
    assert net.out[2].num_heads == 4


def test_an_unknown_pool_is_refused():
    with pytest.raises(ValueError, match="pool: 'mean'; expected one of adaptive, attention"):
        EncoderUNetModel(**SMALL, pool="mean")
