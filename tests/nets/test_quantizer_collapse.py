"""The published quantizer leaves most of its codes unused; the default cure does not."""

import pytest
import torch

from ldm.nets.codebook_window import CodebookCounts
from ldm.nets.quantizer import VectorQuantizer
from ldm.nets.quantizer_ema import EMAVectorQuantizer
from tests.nets.quantizers import train

pytestmark = pytest.mark.slow
K, D = 256, 8


def gaussian(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, D, 16, 16, generator=generator).requires_grad_()


def usage_after(quantizer, steps=500):
    parameters = list(quantizer.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-3) if parameters else None
    for step in range(steps):
        train(quantizer, [gaussian(step)], optimizer, step)
    counts = CodebookCounts(K)
    with torch.no_grad():
        for seed in range(64):  # 65536 codes
            counts.add(quantizer.eval()(gaussian(10_000 + seed))[2][2])
    return counts.use().usage.item()


def test_default_cure_uses_the_codes_that_the_published_quantizer_leaves():
    torch.manual_seed(0)
    published = usage_after(VectorQuantizer(K, D))
    cured = usage_after(EMAVectorQuantizer(K, D, l2_norm=True, restart=True))
    assert published < 0.5
    assert cured >= 0.95


def test_restart_brings_back_a_codebook_that_has_collapsed():
    torch.manual_seed(0)
    heap = torch.nn.functional.normalize(1 + 0.01 * torch.randn(K, D), dim=1)
    usages = []
    for restart in (False, True):
        quantizer = EMAVectorQuantizer(K, D, l2_norm=True, restart=restart, decay=0.999)
        quantizer.embedding.weight.copy_(heap)
        quantizer.cluster_sum.copy_(heap)
        usages.append(usage_after(quantizer))
    assert usages[0] < 0.5
    assert usages[1] >= 0.95
