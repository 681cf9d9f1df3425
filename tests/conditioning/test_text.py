"""Captions to tokens to vectors, without a network."""

import json

import pytest
import torch
from transformers import BertTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm.conditioning.hub import from_hub
from ldm.conditioning.text import (
    BERTEmbedder,
    BERTTokenizer,
    FrozenCLIPEmbedder,
    TransformerEmbedder,
)
from ldm.config import ConfigError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle", "blue"]
CLIP = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 7,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return str(path)


@pytest.fixture
def clip(tmp_path):
    """A directory with a small CLIP text model and its tokenizer."""
    pieces = ["<|startoftext|>", "<|endoftext|>", "a</w>", "r", "re", "red</w>", "d</w>", "e"]
    (tmp_path / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    CLIPTextModel(CLIPTextConfig(**CLIP, vocab_size=len(pieces))).save_pretrained(tmp_path)
    return str(tmp_path)


def bert(vocabulary, **options):
    arguments = {"vocab_size": len(WORDS), "max_seq_len": 6, "tokenizer": vocabulary}
    return BERTEmbedder(8, 1, **arguments | options).eval()


def test_captions_become_tokens_of_a_fixed_number(vocabulary):
    tokens = BERTTokenizer(vocabulary, max_length=6)(["a RED circle", "a", "a a a a a a a a"])
    assert tokens.tolist() == [
        [2, 5, 6, 7, 3, 0],
        [2, 5, 3, 0, 0, 0],
        [2, 5, 5, 5, 5, 3],
    ]


def test_the_line_of_a_word_piece_is_its_number(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n\n[UNK]\n[CLS]\n[SEP]\na\n", encoding="utf-8")  # one line is empty
    assert BERTTokenizer(str(path), max_length=3)(["a"]).tolist() == [[3, 5, 4]]


def test_a_vocabulary_may_lie_in_a_directory(vocabulary, tmp_path):
    captions = ["a RED circle", "blue"]
    whole = BERTTokenizer(vocabulary, max_length=6)(captions)
    assert torch.equal(BERTTokenizer(str(tmp_path), max_length=6)(captions), whole)


def test_a_word_that_is_not_in_the_vocabulary_is_unknown(vocabulary):
    assert BERTTokenizer(vocabulary, max_length=3)(["green"]).tolist() == [[2, 1, 3]]


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("a RED circle", []),
        ("Green circle, green.", ["Green", ",", "green", "."]),  # as they are spelled
        ("green green a", ["green"]),
        ("a [UNK]", []),  # which is in the vocabulary
        ("a a a a a green", []),  # beyond what is read
        ("", []),
    ],
)
def test_words_that_are_read_as_unknown_are_listed(vocabulary, caption, words):
    tokenizer = BERTTokenizer(vocabulary, max_length=7)
    assert tokenizer.unknown == "[UNK]"
    assert tokenizer.unknown_words(caption) == words
    assert (1 in tokenizer([caption])) == (bool(words) or "[UNK]" in caption)
    assert BERTTokenizer(vocabulary, max_length=2).unknown_words(caption) == []


def test_captions_and_their_tokens_give_the_same_vectors(vocabulary):
    embedder = bert(vocabulary)
    captions = ["a red circle", ""]
    out = embedder(captions)
    assert out.shape == (2, 6, 8)
    assert torch.equal(embedder.encode(embedder.tokenizer(captions)), out)


def test_dropped_captions_are_empty(vocabulary):
    dropped = torch.tensor([True, False])
    assert bert(vocabulary).drop(["a red circle", "a"], dropped) == ["", "a"]


def test_captions_that_are_all_empty_stay_captions(vocabulary):
    assert bert(vocabulary).drop(["", ""], torch.tensor([True, True])) == ["", ""]
    assert bert(vocabulary).drop([], torch.tensor([], dtype=torch.bool)) == []


def test_dropped_tokens_are_zero(vocabulary):
    tokens = torch.tensor([[2, 5, 3], [2, 6, 3]])
    kept = bert(vocabulary).drop(tokens, torch.tensor([True, False]))
    assert kept.tolist() == [[0, 0, 0], [2, 6, 3]]


def test_a_vocabulary_larger_than_the_embedding_is_refused(vocabulary):
    with pytest.raises(ConfigError, match="has 9 word pieces, vocab_size is 5"):
        bert(vocabulary, vocab_size=5).prepare()


def test_a_missing_vocabulary_is_named(tmp_path):
    with pytest.raises(ConfigError, match="there is no vocabulary file"):
        bert(str(tmp_path / "none.txt")).prepare()


def test_a_tokenizer_that_cannot_be_had_says_how_to_get_it(tmp_path):
    with pytest.raises(ConfigError, match=r"the tokenizer .*hf download .*--local-dir DIR"):
        bert(str(tmp_path / "nothing")).prepare()


def test_a_directory_without_a_tokenizer_is_named_as_such(tmp_path):
    with pytest.raises(
        ConfigError,
        match=f"the tokenizer: the directory '{tmp_path}' lacks a file: expected tokenizer.json or "
        "vocab.txt",
    ):
        bert(str(tmp_path)).prepare()


def test_without_a_tokenizer_there_is_nothing_to_prepare(tmp_path):
    bert(str(tmp_path / "nothing"), use_tokenizer=False).prepare()


def test_the_embedding_can_be_dropped_out_in_training():
    embedder = TransformerEmbedder(8, 1, 10, 4, embedding_dropout=0.5)
    tokens = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(embedder.eval()(tokens), embedder(tokens))
    embedder.train()
    assert not torch.equal(embedder(tokens), embedder(tokens))


# CLIP


def test_clip_takes_weights_and_tokenizer_from_a_directory(clip):
    embedder = FrozenCLIPEmbedder(clip, max_length=7)
    out = embedder(["a red", "a"])
    assert out.shape == (2, 7, 8)
    tokens = torch.tensor([[0, 2, 5, 1, 1, 1, 1], [0, 2, 1, 1, 1, 1, 1]])
    source = CLIPTextModel.from_pretrained(clip)
    assert torch.equal(out, source(input_ids=tokens).last_hidden_state)
    assert torch.equal(out, embedder.encode(tokens))


def test_clip_lists_unknown_words_but_not_the_end_of_a_caption(clip):
    tokenizer = FrozenCLIPEmbedder(str(clip)).tokenizer
    known, unknown = "red", "red é"
    assert tokenizer.unknown_words(known) == []
    assert tokenizer.unknown_words(unknown)


def test_clip_is_frozen_and_stays_in_evaluation_mode(clip):
    embedder = FrozenCLIPEmbedder(clip)
    assert not any(parameter.requires_grad for parameter in embedder.parameters())
    assert not embedder.train().training
    assert not embedder.transformer.training


def test_clip_has_its_published_names(clip):
    names = FrozenCLIPEmbedder(clip).state_dict()
    assert all(name.startswith("transformer.text_model.") for name in names)
    assert "transformer.text_model.encoder.layers.0.mlp.fc1.bias" in names


def test_clip_with_weights_of_a_checkpoint_fetches_none(clip, tmp_path_factory):
    trained = FrozenCLIPEmbedder(clip)
    trained.prepare()
    bare = tmp_path_factory.mktemp("bare")  # architecture and tokenizer, no weights
    for file in ("config.json", "vocab.json", "merges.txt"):
        (bare / file).write_bytes((tmp_path_factory.getbasetemp() / clip / file).read_bytes())
    with pytest.raises(ConfigError, match=f"the text encoder: the directory '{bare}' lacks a file"):
        FrozenCLIPEmbedder(str(bare)).prepare()
    restored = FrozenCLIPEmbedder(str(bare), max_length=7)
    restored.load_state_dict(trained.state_dict())
    assert torch.equal(restored(["a red"]), FrozenCLIPEmbedder(clip, max_length=7)(["a red"]))


def test_clip_drops_captions_as_well(clip):
    embedder = FrozenCLIPEmbedder(clip)
    assert embedder.drop(["a", "red"], torch.tensor([False, True])) == ["a", ""]
    tokens = torch.tensor([[0, 2, 1]])
    assert embedder.drop(tokens, torch.tensor([True])).tolist() == [[0, 0, 0]]


def test_clip_of_a_directory_without_a_configuration_is_refused(tmp_path):
    message = (
        f"the text encoder's configuration: the directory '{tmp_path}' lacks a file.*config.json"
    )
    with pytest.raises(ConfigError, match=message):
        FrozenCLIPEmbedder(str(tmp_path))


def test_clip_of_a_directory_without_a_whole_tokenizer_is_refused(clip, tmp_path):
    (tmp_path / "merges.txt").unlink()
    message = "lacks a file: expected tokenizer.json or vocab.json with merges.txt"
    with pytest.raises(ConfigError, match=message):
        FrozenCLIPEmbedder(clip).prepare()


def test_clip_that_cannot_be_had_says_how_to_get_it(tmp_path):
    with torch.device("meta"):  # of the published size
        embedder = FrozenCLIPEmbedder(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"hf download .*--local-dir DIR"):
        embedder.prepare()


@pytest.mark.parametrize("loader", [BertTokenizer, CLIPTokenizer])
def test_a_tokenizer_of_no_words_is_none(loader, monkeypatch):
    """Without a cache and a network transformers makes one up, and says nothing."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"hf download nobody/none .*vocabulary is empty"):
        from_hub(loader, "nobody/none", "the tokenizer")
