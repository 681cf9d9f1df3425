import pytest
import torch

from ldm.nets.text import Encoder, RMSNorm, TransformerWrapper
from tests.nets.published_case import build
from tests.reference import Case, cases, fill

WRAPPERS = [name for name in cases("f_encoders") if name.startswith("xtransformer_")]
EMBEDDERS = [name for name in cases("f_encoders") if name.startswith(("bert_", "transformer"))]


def make(**arguments):
    return fill(
        TransformerWrapper(num_tokens=20, max_seq_len=8, attn_layers=Encoder(32, 2), **arguments)
    ).eval()


def outputs(net, tokens):
    mask = (torch.arange(tokens.shape[1]) < tokens.shape[1] // 2).expand_as(tokens)
    with torch.no_grad():
        embeddings, weights = net(tokens, return_embeddings=True, return_attn=True)
        return {
            "embeddings": embeddings,
            "logits": net(tokens),
            "attn_layer0": weights[0],
            "embeddings_masked": net(tokens, mask=mask, return_embeddings=True),
        }


@pytest.mark.parametrize("name", WRAPPERS)
def test_transformer_gives_the_published_output(name):
    case = Case("f_encoders", name)
    got = outputs(build(case), case.input("tokens"))
    for key in case.want:
        case.check(key, got[key])


@pytest.mark.parametrize("name", EMBEDDERS)
def test_transformer_of_an_embedder_gives_the_published_output(name):
    case = Case("f_encoders", name)
    layers = Encoder(case.params["n_embed"], case.params["n_layer"])
    net = TransformerWrapper(
        num_tokens=case.params["vocab_size"],
        max_seq_len=case.params["max_seq_len"],
        attn_layers=layers,
    )
    got = outputs(fill(net, "transformer.").eval(), case.input("tokens"))
    for key in case.want:
        case.check(key, got[key])


@pytest.mark.parametrize(
    "arguments", [{}, {"emb_dim": 24}, {"num_memory_tokens": 3}, {"tie_embedding": True}]
)
@pytest.mark.parametrize("length", [1, 8])
def test_transformer_gives_a_state_and_logits_per_token(arguments, length):
    net, tokens = make(**arguments), torch.zeros(2, length, dtype=torch.long)
    assert net(tokens).shape == (2, length, 20)
    assert net(tokens, return_embeddings=True).shape == (2, length, 32)


def test_attention_weights_are_a_distribution():
    _, weights = make()(torch.arange(8)[None], return_attn=True)
    assert [w.shape for w in weights] == [(1, 8, 8, 8)] * 2
    torch.testing.assert_close(weights[0].sum(dim=3), torch.ones(1, 8, 8))


def test_masked_tokens_do_not_change_the_others():
    net, mask = make(), torch.arange(8)[None] < 5
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 9, 10, 11]])
    a, b = net(tokens, mask=mask.expand(2, -1), return_embeddings=True)
    torch.testing.assert_close(a[:5], b[:5])


def test_without_positions_the_order_does_not_matter():
    net = make(use_pos_emb=False)
    tokens = torch.arange(8)[None]
    a, b = net(tokens), net(tokens.flip(1)).flip(1)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_rms_norm_has_unit_mean_square():
    x = torch.randn(2, 3, 32) * 7
    torch.testing.assert_close(RMSNorm(32)(x).square().mean(dim=2), torch.ones(2, 3))
    assert torch.equal(RMSNorm(32)(torch.zeros(1, 32)), torch.zeros(1, 32))


def test_a_sequence_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="sequence of 9 tokens, max_seq_len is 8"):
        make()(torch.zeros(1, 9, dtype=torch.long))
