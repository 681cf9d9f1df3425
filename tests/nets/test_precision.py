"""Autocast, and where networks are left alone by it."""

import pytest
import torch

from ldm.nets.precision import (
    hold_products_in,
    is_half_on_cpu,
    is_single_on_cpu,
    without_autocast,
)
from ldm.nets.quantizer import VectorQuantizer
from ldm.nets.upsample import upsample_conv
from tests.nets import test_unet


def test_a_product_keeps_its_precision_inside():
    x = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype is torch.bfloat16
        with without_autocast(x):
            assert (x @ x).dtype is torch.float32


@pytest.mark.parametrize(
    ("stored", "autocast", "is_half"),
    [
        (torch.float32, None, False),
        (torch.bfloat16, None, True),
        (torch.float16, None, True),
        (torch.float32, torch.bfloat16, True),
        (torch.float32, torch.float16, True),
    ],
)
def test_autocast_decides_over_the_type_of_a_tensor(stored, autocast, is_half):
    x = torch.ones(2, dtype=stored)
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        assert is_half_on_cpu(x) is is_half
        assert is_single_on_cpu(x) is not is_half


def test_a_tensor_elsewhere_is_computed_in_no_precision_of_the_cpu():
    assert not is_half_on_cpu(torch.ones(2, device="meta", dtype=torch.bfloat16))
    assert not is_single_on_cpu(torch.ones(2, device="meta"))


def test_a_quantizer_and_an_upsampling_work_out_their_shapes_on_the_meta_device():
    with torch.device("meta"):
        quantized, _, (_, _, codes) = VectorQuantizer(8, 3, beta=0.25)(torch.empty(2, 3, 16, 16))
        enlarged = upsample_conv(torch.empty(2, 3, 16, 16), torch.empty(5, 3, 3, 3), None)
    assert quantized.shape == (2, 3, 16, 16)
    assert codes.shape == (512,)
    assert enlarged.shape == (2, 5, 32, 32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", test_unet.VARIANTS)
def test_weights_held_in_half_precision_change_no_bit_under_autocast(variant, dtype):
    net, given = test_unet.make(variant).eval(), test_unet.arguments(variant)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        want = net(**given)
        hold_products_in(net, dtype)
        assert torch.equal(net(**given), want)


def test_norms_and_embeddings_are_held_as_they_were():
    net = test_unet.make("classes")
    hold_products_in(net, torch.bfloat16)
    held = {name for name, p in net.named_parameters() if p.dtype is torch.bfloat16}
    kept = {name for name, p in net.named_parameters() if p.dtype is torch.float32}
    assert {"time_embed.0.weight", "input_blocks.0.0.bias", "out.2.weight"} <= held
    assert {"label_emb.weight", "out.0.weight", "input_blocks.1.0.in_layers.0.bias"} <= kept
    assert not any(p.requires_grad for name, p in net.named_parameters() if name in held)


def test_only_half_precision_holds_weights():
    with pytest.raises(ValueError, match=r"dtype is torch.float64, expected one of torch.bfloat16"):
        hold_products_in(torch.nn.Linear(1, 1), torch.float64)
