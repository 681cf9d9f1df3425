"""Networks compile as one graph, and compute the same compiled."""

import pytest
import torch

from ldm.nets.autoencoder import Decoder, Encoder
from ldm.nets.discriminator import NLayerDiscriminator
from ldm.nets.quantizer import VectorQuantizer
from ldm.nets.text import Encoder as TextEncoder
from ldm.nets.text import TransformerWrapper
from tests.nets import test_autoencoder, test_unet
from tests.reference import fill

IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
LATENTS = torch.linspace(-1, 1, 2 * 4 * 8 * 8).view(2, 4, 8, 8)
TOKENS = torch.arange(16).view(2, 8)


def text():
    return TransformerWrapper(num_tokens=20, max_seq_len=8, attn_layers=TextEncoder(32, 1))


NETS = {
    **{
        f"unet, {variant}": (
            lambda variant=variant: test_unet.make(variant),
            lambda variant=variant: tuple(test_unet.arguments(variant).values()),
        )
        for variant in ("attention", "transformer", "scale-shift, resampling blocks")
    },
    "unet, checkpointed": (
        lambda: test_unet.make(use_checkpoint=True),
        lambda: tuple(test_unet.arguments("attention").values()),
    ),
    "encoder": (lambda: Encoder(**test_autoencoder.SMALL), lambda: (IMAGES,)),
    "decoder": (lambda: Decoder(**test_autoencoder.SMALL), lambda: (LATENTS,)),
    "quantizer": (lambda: VectorQuantizer(20, 4), lambda: (LATENTS.clone().requires_grad_(),)),
    "discriminator": (lambda: NLayerDiscriminator(ndf=8, n_layers=2), lambda: (IMAGES,)),
    "text": (text, lambda: (TOKENS,)),
}


def first(out):
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("name", NETS)
def test_net_compiles_as_one_graph(name):
    make, given = NETS[name]
    net, given = fill(make()), given()
    want = first(net(*given))
    torch.compiler.reset()
    got = first(torch.compile(net, fullgraph=True, backend="eager")(*given))
    # the compiled graph takes the fused attention and the matrix products
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    got.square().sum().backward()


@pytest.mark.slow  # traces the backward pass too
@pytest.mark.parametrize("name", NETS)
def test_compiled_gradients_equal_eager_ones(name):
    make, given = NETS[name]
    net, given = fill(make()), given()
    gradients = []
    torch.compiler.reset()
    for call in (net, torch.compile(net, fullgraph=True, backend="aot_eager")):
        net.zero_grad()
        first(call(*given)).square().mean().backward()
        gradients.append({n: p.grad for n, p in net.named_parameters() if p.grad is not None})
    for key, want in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], want, rtol=1e-3, atol=1e-4, msg=key)
