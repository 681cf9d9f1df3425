"""A caption as the sum of its words."""

import pytest
import torch

from ldm.conditioning.words import BagOfWords
from ldm.config import ConfigError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle", "blue"]


@pytest.fixture
def bag(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return BagOfWords(4, vocab_size=len(WORDS), max_seq_len=8, tokenizer=str(path), key="caption")


def test_a_caption_is_the_sum_of_its_word_pieces(bag):
    table = bag.embedding.weight
    pieces = [WORDS.index(word) for word in ("[CLS]", "red", "circle", "[SEP]")]
    torch.testing.assert_close(bag.encode(["red circle"])[0], table[pieces].sum(0))


def test_order_and_padding_do_not_count(bag):
    one, other, longer = bag.encode(["red circle", "circle red", "a red circle"])
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(longer - one, bag.embedding.weight[WORDS.index("a")])


def test_captions_and_their_tokens_give_the_same_vectors(bag):
    captions = ["a red circle", ""]
    assert torch.equal(bag.encode(bag.tokenizer(captions)), bag.encode(captions))


def test_dropped_captions_are_empty(bag):
    assert bag.drop(["a", "red"], torch.tensor([True, False])) == ["", "red"]


def test_a_vocabulary_larger_than_the_table_is_refused(bag):
    small = BagOfWords(4, vocab_size=3, tokenizer=bag._tokenizer_name)
    with pytest.raises(ConfigError, match="has 9 word pieces, vocab_size is 3"):
        small.prepare()
