import pytest
import torch

from ldm.nets.ddpm_unet import Model
from tests.reference import fill

SMALL = {
    "ch": 32,
    "out_ch": 3,
    "ch_mult": [1, 2, 2],
    "num_res_blocks": 2,
    "attn_resolutions": [8],
    "in_channels": 5,
    "resolution": 16,
}


@pytest.mark.parametrize("arguments", [{}, {"resamp_with_conv": False}, {"attn_type": "none"}])
@pytest.mark.parametrize("size", [(8, 8), (16, 12)])
def test_model_keeps_the_size(arguments, size):
    with torch.device("meta"):
        net = Model(**{**SMALL, **arguments})
        out = net(torch.empty(2, 5, *size), torch.empty(2))
        assert out.shape == (2, 3, *size)


def test_a_context_is_joined_to_the_channels():
    net, t = fill(Model(**SMALL)), torch.tensor([1, 2])
    x, context = torch.randn(2, 3, 8, 8), torch.randn(2, 2, 8, 8)
    assert torch.equal(net(x, t, context), net(torch.cat([x, context], dim=1), t))


def test_a_model_without_time_does_not_embed_it():
    net = fill(Model(**SMALL, use_timestep=False))
    assert not [name for name, _ in net.named_parameters() if name.startswith("temb.")]
    x = torch.randn(1, 5, 8, 8)
    assert torch.equal(net(x), net(x, torch.tensor([7])))


def test_the_network_tells_its_channels_and_its_factor():
    with torch.device("meta"):
        net = Model(**SMALL)
    assert (net.in_channels, net.out_channels, net.downsample_factor) == (5, 3, 4)


@pytest.mark.parametrize("size", [(8, 6), (10, 8)])
def test_a_size_that_the_levels_do_not_divide_is_refused(size):
    with torch.device("meta"):
        net = Model(**SMALL)
        message = f"x is {size[0]}x{size[1]}, height and width must be multiples of 4"
        with pytest.raises(ValueError, match=message):
            net(torch.empty(2, 5, *size), torch.empty(2))


def test_a_network_without_levels_is_refused():
    with pytest.raises(ValueError, match=r"ch_mult=\[\]: expected one factor per level"):
        Model(**{**SMALL, "ch_mult": []})


def test_a_missing_time_is_refused():
    with pytest.raises(ValueError, match="t, the time of each example, is missing"):
        Model(**SMALL)(torch.zeros(1, 5, 8, 8))
