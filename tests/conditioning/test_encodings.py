"""Captions are encoded once, however often and in however many batches they stand."""

import pytest
import torch

from ldm.conditioning.base import Embedder
from ldm.conditioning.conditioner import Conditioner, Part
from ldm.conditioning.encodings import Encodings
from ldm.conditioning.labels import ClassEmbedder
from ldm.conditioning.text import BERTEmbedder

CAPTIONS = ["a cat", "a dog", "a cat", "a cat"]


class Counted(Embedder):
    """Tokens that say the length and the first letter of a caption; remembers what it encoded."""

    reads = "text"

    def __init__(self):
        super().__init__(key="caption")
        self.seen = []

    def encode(self, value):
        self.seen.append(list(value))
        rows = [[len(text), ord(text[0]) if text else 0] for text in value]
        return torch.tensor(rows, dtype=torch.float32)[:, None]

    def drop(self, value, dropped):
        return ["" if gone else text for text, gone in zip(value, dropped.tolist(), strict=True)]


def conditioner(embedder):
    return Conditioner((Part(embedder, "caption", "crossattn"),))


def test_each_distinct_caption_is_encoded_once_and_stands_where_it_stood():
    embedder = Counted()
    got = conditioner(embedder)({"caption": CAPTIONS}, encodings=Encodings()).crossattn
    assert embedder.seen == [["a cat", "a dog"]]
    assert torch.equal(got, embedder.encode(CAPTIONS))


def test_the_empty_caption_is_encoded_once_for_all_batches():
    embedder, encodings = Counted(), Encodings()
    for size in (4, 4, 1):
        batch = {"caption": CAPTIONS[:size]}
        null = conditioner(embedder).null(batch, encodings=encodings).crossattn
        assert torch.equal(null, torch.zeros(size, 1, 2))
    assert embedder.seen == [[""]]


def test_without_a_memory_every_caption_is_encoded_as_in_training():
    embedder = Counted()
    conditioner(embedder)({"caption": CAPTIONS})
    assert embedder.seen == [CAPTIONS]


def test_what_a_batch_gets_does_not_depend_on_the_batches_before():
    # a caption in other company is encoded again: its last bits may be others
    embedder, encodings = Counted(), Encodings()
    for captions in (CAPTIONS, ["a cat"], ["a dog", "a bird"], CAPTIONS):
        encodings.of(embedder, captions)
    assert embedder.seen == [["a cat", "a dog"], ["a cat"], ["a dog", "a bird"]]


def test_what_was_used_longest_ago_is_forgotten():
    embedder, encodings = Counted(), Encodings(limit=2)
    for caption in ("a", "b", "a", "c", "a", "b"):
        encodings.of(embedder, [caption])
    assert embedder.seen == [["a"], ["b"], ["c"], ["b"]]


def test_encoders_of_one_caption_are_told_apart():
    first, second, encodings = Counted(), Counted(), Encodings()
    for embedder in (first, second, first):
        encodings.of(embedder, ["a cat"])
    assert len(first.seen) == len(second.seen) == 1


@pytest.mark.parametrize("value", [torch.tensor([1, 2, 1]), torch.tensor([[0], [1], [0]])])
def test_labels_and_token_ids_are_encoded_as_they_are(value):
    embedder = ClassEmbedder(4, n_classes=5)
    assert torch.equal(Encodings().of(embedder, value), embedder.encode(value))


def test_a_transformer_gives_equal_captions_what_it_gives_them_one_by_one():
    embedder = BERTEmbedder(16, 2, vocab_size=20, max_seq_len=5).eval()
    ids = {"a cat": [3, 4, 0, 0, 0], "a dog": [3, 5, 6, 0, 0]}
    encode = embedder.encode
    embedder.encode = lambda texts: encode(torch.tensor([ids[text] for text in texts]))
    with torch.no_grad():
        got = Encodings().of(embedder, CAPTIONS)
        # products of other sizes round otherwise
        torch.testing.assert_close(got, embedder.encode(CAPTIONS), rtol=1e-5, atol=1e-5)
