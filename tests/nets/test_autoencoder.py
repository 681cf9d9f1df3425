import pytest
import torch

from ldm.nets.autoencoder import Decoder, Encoder
from ldm.nets.autoencoder_blocks import AttnBlock, LinAttnBlock, attention_of_type
from tests.reference import fill

SMALL = {
    "ch": 32,
    "out_ch": 3,
    "ch_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [16],
    "in_channels": 3,
    "resolution": 64,
    "z_channels": 4,
}


@pytest.mark.parametrize("double_z", [True, False])
@pytest.mark.parametrize("ch_mult", [[1], [1, 2], [1, 2, 2, 4]])
@pytest.mark.parametrize("size", [(8, 8), (16, 24), (64, 8)])
def test_encoder_and_decoder_have_the_factor_of_their_levels(double_z, ch_mult, size):
    arguments = {**SMALL, "ch_mult": ch_mult, "double_z": double_z}
    factor = 2 ** (len(ch_mult) - 1)
    small = tuple(s // factor for s in size)
    with torch.device("meta"):
        encoder, decoder = Encoder(**arguments), Decoder(**arguments)
        assert encoder.downsample_factor == factor
        moments = encoder(torch.empty(2, 3, *size))
        assert moments.shape == (2, 8 if double_z else 4, *small)
        assert decoder(moments[:, :4]).shape == (2, 3, *size)


@pytest.mark.parametrize("half", [Encoder, Decoder])
def test_no_level_at_all_is_refused(half):
    with pytest.raises(ValueError, match=r"ch_mult=\[\]: expected one factor per level"):
        half(**{**SMALL, "ch_mult": []})


def test_attention_stands_at_the_nominal_sizes():
    with torch.device("meta"):
        encoder, decoder = Encoder(**SMALL), Decoder(**SMALL)
    assert [len(level.attn) for level in encoder.down] == [0, 0, 1]
    assert [len(level.attn) for level in decoder.up] == [0, 0, 2]


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({}, AttnBlock),
        ({"attn_type": "linear"}, LinAttnBlock),
        ({"use_linear_attn": True}, LinAttnBlock),
        ({"attn_type": "none"}, torch.nn.Identity),
    ],
)
def test_attention_is_of_the_type_asked_for(arguments, kind):
    with torch.device("meta"):
        net = Encoder(**SMALL, **arguments)
    assert type(net.mid.attn_1) is kind
    assert type(net.down[2].attn[0]) is kind


@pytest.mark.parametrize("half", [Encoder, Decoder])
def test_every_norm_has_the_groups_asked_for(half):
    with torch.device("meta"):
        net = half(**{**SMALL, "num_groups": 16})
    norms = [module for module in net.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {16}
    assert any("attn" in name for name, module in net.named_modules() if module in norms)


def test_an_unknown_attention_is_refused():
    with pytest.raises(ValueError, match=r"attn_type: 'vanila'; .* did you mean 'vanilla'"):
        attention_of_type("vanila", 32)


def test_decoder_may_squash_its_output_or_stop_before_it():
    z = torch.randn(1, 4, 4, 4)
    plain = fill(Decoder(**SMALL))
    torch.testing.assert_close(fill(Decoder(**SMALL, tanh_out=True))(z), plain(z).tanh())
    assert fill(Decoder(**SMALL, give_pre_end=True))(z).shape == (1, 32, 16, 16)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 16, 16), "images have 1 channels, expected 3"),
        ((1, 3, 16, 18), "images are 16 x 18, .* f = 4; the nearest: 16 x 16 or 16 x 20$"),
        ((1, 3, 3, 2), "images are 3 x 2, .* f = 4; the nearest: 4 x 4$"),
        ((1, 3, 3, 9), "images are 3 x 9, .* f = 4; the nearest: 4 x 8 or 4 x 12$"),
    ],
)
def test_images_the_encoder_was_not_built_for_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        Encoder(**SMALL)(torch.zeros(shape))


@pytest.mark.parametrize("half", [Encoder, Decoder])
def test_bfloat16_stays_close_to_single_precision(half):
    net = fill(half(**SMALL))
    x = torch.randn(2, 3, 32, 32) if half is Encoder else torch.randn(2, 4, 8, 8)
    want = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = net(x)
    # 8 significant bits, about twenty layers deep
    assert (got - want).norm() < 0.05 * want.norm()


@pytest.mark.parametrize("half", [Encoder, Decoder])
def test_channels_last_equals_contiguous(half):
    net = fill(half(**SMALL)).double()
    x = torch.randn(2, 3 if half is Encoder else 4, 8, 8, dtype=torch.float64)
    want = net(x)
    got = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
