"""Autocast, and where networks are left alone by it."""

import torch

from ldm.nets.precision import without_autocast
from ldm.nets.quantizer import VectorQuantizer
from ldm.nets.upsample import upsample_conv


def test_a_product_keeps_its_precision_inside():
    x = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype is torch.bfloat16
        with without_autocast(x):
            assert (x @ x).dtype is torch.float32


def test_a_quantizer_and_an_upsampling_work_out_their_shapes_on_the_meta_device():
    with torch.device("meta"):
        quantized, _, (_, _, codes) = VectorQuantizer(8, 3, beta=0.25)(torch.empty(2, 3, 16, 16))
        enlarged = upsample_conv(torch.empty(2, 3, 16, 16), torch.empty(5, 3, 3, 3), None)
    assert quantized.shape == (2, 3, 16, 16)
    assert codes.shape == (512,)
    assert enlarged.shape == (2, 5, 32, 32)
