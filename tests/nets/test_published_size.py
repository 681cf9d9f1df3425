"""Networks of published size against their reference vectors."""

import pytest
import torch

from ldm.nets.text import Encoder, TransformerWrapper
from tests.nets.published_case import build, inputs
from tests.reference import Case, cases, fill

pytestmark = pytest.mark.slow

UNETS = [name for name in cases("k_published_size") if name.startswith("unet_")]


@pytest.mark.parametrize("name", UNETS)
def test_unet_of_published_size_gives_the_published_output(name):
    case = Case("k_published_size", name)
    assert set(case.want) == {"out"}
    with torch.no_grad():
        case.check("out", build(case)(*inputs(case).values()))


def test_text_transformer_of_published_size_gives_the_published_output():
    case = Case("k_published_size", "bert_text2img256")
    assert set(case.want) == {"embeddings"}
    layers = Encoder(case.params["n_embed"], case.params["n_layer"])
    net = TransformerWrapper(num_tokens=30522, max_seq_len=77, attn_layers=layers)
    with torch.no_grad():
        out = fill(net, "transformer.").eval()(case.input("tokens"), return_embeddings=True)
    case.check("embeddings", out)
