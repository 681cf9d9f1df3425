"""Neighbours as the tokens of a condition."""

import pytest
import torch

from ldm.conditioning.conditioner import Conditioner, Part
from ldm.conditioning.retrieval import NeighbourEmbedder
from ldm.nets.attention import CrossAttention

NEAR = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))


def test_embeddings_are_the_tokens():
    embedder = NeighbourEmbedder(8)
    assert embedder.encode(NEAR) is NEAR
    assert not embedder.state_dict()
    assert torch.equal(NeighbourEmbedder(8, scale=2.0).encode(NEAR[:, :1]), 2 * NEAR[:, :1])


def test_no_condition_is_zeros_to_which_attention_adds_nothing():
    embedder = NeighbourEmbedder(8, drop_rate=0.1)
    null = Conditioner((Part(embedder, "neighbours", "crossattn"),)).null({"neighbours": NEAR})
    assert torch.equal(null.crossattn, torch.zeros_like(NEAR))
    attention = CrossAttention(16, 8, heads=2, dim_head=8)
    out = attention(torch.randn(3, 5, 16), null.crossattn)
    torch.testing.assert_close(out, attention.to_out[0].bias.expand(3, 5, 16))


def test_neighbours_that_are_repeated_are_to_attention_as_if_they_were_not():
    attention = CrossAttention(16, 8, heads=2, dim_head=8)
    x = torch.randn(3, 5, 16)
    torch.testing.assert_close(attention(x, NEAR[:, :2]), attention(x, NEAR[:, [0, 1, 0, 1]]))


def test_embeddings_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"neighbours is of shape \(3, 4, 8\); expected \(B, k, 6"):
        NeighbourEmbedder(6).encode(NEAR)
    with pytest.raises(ValueError, match="scale is 0; expected a factor above 0"):
        NeighbourEmbedder(8, scale=0)
