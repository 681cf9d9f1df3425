import pytest
import torch

from ldm.nets.rescaler import LatentRescaler, UpsampleDecoder


@pytest.mark.parametrize(("factor", "size"), [(0.5, (3, 4)), (1, (6, 8)), (1.7, (10, 14))])
def test_latent_rescaler_has_any_factor(factor, size):
    with torch.device("meta"):
        net = LatentRescaler(factor, in_channels=4, mid_channels=32, out_channels=5)
        assert net(torch.empty(2, 4, 6, 8)).shape == (2, 5, *size)


@pytest.mark.parametrize("ch_mult", [(1,), (2, 2), (1, 2, 1)])
def test_upsample_decoder_doubles_from_level_to_level(ch_mult):
    factor = 2 ** (len(ch_mult) - 1)
    with torch.device("meta"):
        net = UpsampleDecoder(32, 3, ch=32, num_res_blocks=1, resolution=64, ch_mult=ch_mult)
        assert net(torch.empty(2, 32, 5, 6)).shape == (2, 3, 5 * factor, 6 * factor)
