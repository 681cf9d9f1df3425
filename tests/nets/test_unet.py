import pytest
import torch

from ldm.nets.unet import UNetModel
from tests.reference import fill

SMALL = {
    "image_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": [2, 1],
    "channel_mult": [1, 2],
    "num_heads": 4,
}
# the switches that change what a net is made of
VARIANTS = {
    "attention": {},
    "transformer": {"use_spatial_transformer": True, "context_dim": 12},
    "classes": {"num_classes": 10},
    "vectors": {"adm_in_channels": 12},
    "scale-shift, resampling blocks": {"use_scale_shift_norm": True, "resblock_updown": True},
    "resampling without weights": {"conv_resample": False},
}


def make(variant="attention", **others):
    return fill(UNetModel(**{**SMALL, **VARIANTS[variant], **others}))


def arguments(variant, batch=2, size=(16, 16), dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, *size, generator=generator).to(dtype)
    given = {"x": x, "timesteps": torch.arange(batch) * 100}
    if variant == "transformer":
        given["context"] = torch.randn(batch, 5, 12, generator=generator).to(dtype)
    if variant == "classes":
        given["y"] = torch.arange(batch)
    if variant == "vectors":
        given["y"] = torch.randn(batch, 12, generator=generator).to(dtype)
    return given


def gradients(net, given):
    net.zero_grad()
    out = net(**given)
    out.float().square().mean().backward()
    return {"out": out} | {name: p.grad for name, p in net.named_parameters()}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (16, 24), (66, 2)])
def test_unet_keeps_the_size(variant, batch, size):
    with torch.device("meta"):
        net = UNetModel(**{**SMALL, **VARIANTS[variant], "out_channels": 5})
        given = {key: torch.empty_like(value) for key, value in arguments(variant, batch).items()}
        given["x"] = torch.empty(batch, 3, *size)
        assert net(**given).shape == (batch, 5, *size)


@pytest.mark.parametrize("variant", VARIANTS)
def test_unet_starts_with_a_zero_output(variant):
    net = UNetModel(**{**SMALL, **VARIANTS[variant]})
    assert not net(**arguments(variant)).any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpointing_gives_equal_gradients(variant):
    given = arguments(variant)
    want = gradients(make(variant), given)
    got = gradients(make(variant, use_checkpoint=True), given)
    for name, value in want.items():
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpointing_follows_autocast(variant):
    given = arguments(variant)
    with torch.autocast("cpu", torch.bfloat16):
        want = gradients(make(variant), given)
        got = gradients(make(variant, use_checkpoint=True), given)
    for name, value in want.items():
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_channels_last_equals_contiguous(variant):
    given, net = arguments(variant, dtype=torch.float64), make(variant).double()
    want = gradients(net, given)
    given["x"] = given["x"].contiguous(memory_format=torch.channels_last)
    got = gradients(net.to(memory_format=torch.channels_last), given)
    for name, value in want.items():
        # sums in another order
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_stays_close_to_single_precision(variant):
    given, net = arguments(variant), make(variant)
    want = gradients(net, given)
    want = {name: value.clone() for name, value in want.items()}
    with torch.autocast("cpu", torch.bfloat16):
        got = gradients(net, given)
    for name, value in want.items():
        if value.norm() < 1e-4 * want["time_embed.0.weight"].norm():
            continue  # zero but for rounding: a shift in front of a norm
        # 8 significant bits, about thirty layers deep
        assert (got[name] - value).norm() < 0.1 * value.norm(), name


def test_output_has_the_type_of_the_input():
    net = make()
    with torch.autocast("cpu", torch.bfloat16):
        assert net(**arguments("attention")).dtype == torch.float32


def test_examples_of_a_batch_do_not_see_each_other():
    given, net = arguments("transformer", batch=3), make("transformer")
    together = net(**given)
    for i in range(3):
        alone = net(**{key: value[i : i + 1] for key, value in given.items()})
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-4, atol=1e-5)


def test_dropout_acts_in_training_only():
    net, given = make(dropout=0.5), arguments("attention")
    torch.manual_seed(0)
    assert not torch.equal(net(**given), net(**given))
    net.eval()
    assert torch.equal(net(**given), net(**given))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model_channels": 40}, r"40 channels .* in 32 groups; the nearest .* is 32"),
        ({"channel_mult": [2, 4]}, r"channel_mult=\[2, 4\] must begin with 1"),
        ({"channel_mult": []}, r"channel_mult=\[\]: expected one factor per level"),
        ({"channel_mult": [1, 0]}, r"channel_mult=\[1, 0\]"),
        ({"num_heads": -1}, "num_heads or num_head_channels must be given"),
        ({"num_heads": 5}, "num_heads=5 does not divide the 32 channels"),
        ({"num_head_channels": 24}, "num_head_channels=24 does not divide"),
        ({"use_spatial_transformer": True}, "use_spatial_transformer needs context_dim"),
        ({"context_dim": 8}, "context_dim=8 has no effect unless use_spatial_transformer"),
        ({"dims": 3}, "dims=3: these networks are for images"),
        ({"num_classes": 2, "adm_in_channels": 4}, "two kinds of y; give one"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        UNetModel(**{**SMALL, **wrong})


@pytest.mark.parametrize(
    ("variant", "wrong", "message"),
    [
        ("attention", {"x": torch.zeros(2, 4, 16, 16)}, "x has 4 channels, this U-Net takes 3"),
        ("attention", {"x": torch.zeros(2, 3, 16, 15)}, "x is 16x15, .* multiples of 2"),
        ("attention", {"y": torch.zeros(2).long()}, "y must be given exactly when num_classes"),
        ("classes", {"y": None}, "y must be given exactly when num_classes"),
        ("vectors", {"y": None}, "y must be given exactly when num_classes or adm_in_channels"),
        ("attention", {"context": torch.zeros(2, 5, 12)}, "a context must be given exactly when"),
        ("transformer", {"context": None}, "a context must be given exactly when context_dim"),
        ("transformer", {"context": torch.zeros(2, 5, 9)}, "9 wide, this U-Net takes 12"),
    ],
)
def test_inputs_the_net_was_not_built_for_are_refused(variant, wrong, message):
    with pytest.raises(ValueError, match=message):
        make(variant)(**{**arguments(variant), **wrong})
