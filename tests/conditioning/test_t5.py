"""Captions to vectors with a small T5 from a directory, without a network."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import T5Config, T5EncoderModel

from ldm.conditioning.t5 import FrozenT5Embedder
from ldm.config import ConfigError, check
from tests.models.test_diffusion_training import NoReads

# id 0 fills, 1 ends a caption
PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -1.0), ("▁red", -2.0)]
CONFIG = {
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 16,
    "num_layers": 2,
    "num_heads": 2,
    "vocab_size": 112,  # the tokenizer adds 100 of its own
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.5,
    "tie_word_embeddings": False,
}


def save_tokenizer(directory):
    tokenizer = Tokenizer(models.Unigram(PIECES, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    ending = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.post_processor = ending
    tokenizer.save(str(directory / "tokenizer.json"))


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """A directory with a small T5 and its tokenizer."""
    directory = tmp_path_factory.mktemp("t5")
    save_tokenizer(directory)
    T5EncoderModel(T5Config(**CONFIG)).save_pretrained(directory)
    return str(directory)


def source_of(t5, tokens):
    mask = torch.tensor(tokens) != 0
    source = T5EncoderModel.from_pretrained(t5).eval()
    with torch.no_grad():
        return source(input_ids=torch.tensor(tokens), attention_mask=mask.long())[0]


def test_t5_gives_what_transformers_gives(t5):
    embedder = FrozenT5Embedder(t5, max_length=5)
    out = embedder.encode(["a red", "a a a a a a", ""])
    tokens = [[3, 4, 1, 0, 0], [3, 3, 3, 3, 1], [1, 0, 0, 0, 0]]
    assert torch.equal(out, source_of(t5, tokens))
    assert torch.equal(out, embedder.encode(torch.tensor(tokens)))
    assert embedder.embed_dim == out.shape[2] == 8


def test_no_token_of_a_caption_sees_its_padding(t5):
    short, long = (FrozenT5Embedder(t5, max_length=n)(["a red"])[:, :3] for n in (3, 9))
    torch.testing.assert_close(short, long)


def test_a_batch_of_t5_waits_for_no_device(t5):
    embedder = FrozenT5Embedder(t5, max_length=4)
    embedder.prepare()
    tokens = embedder.tokenizer(["a red", ""])
    with NoReads():
        embedder.encode(tokens)


def test_t5_loads_nothing_before_it_is_prepared(t5):
    embedder = FrozenT5Embedder(t5, max_length=5)
    assert embedder._tokenizer is None
    weight = T5EncoderModel.from_pretrained(t5).shared.weight
    assert not torch.equal(embedder.transformer.shared.weight, weight)
    embedder.prepare()
    assert torch.equal(embedder.transformer.shared.weight, weight)


def test_t5_is_frozen_and_stays_in_evaluation_mode(t5):
    embedder = FrozenT5Embedder(t5)
    assert not any(parameter.requires_grad for parameter in embedder.parameters())
    assert not embedder.train().training
    assert not embedder.transformer.training
    assert not embedder(["a"]).requires_grad


@pytest.mark.parametrize("as_tokens", [False, True])
def test_the_null_of_t5_is_the_empty_caption(t5, as_tokens):
    embedder = FrozenT5Embedder(t5, max_length=4)
    captions = ["a red", "red"]
    value = embedder.tokenizer(captions) if as_tokens else captions
    dropped = embedder.drop(value, torch.tensor([True, False]))
    assert torch.equal(embedder.encode(dropped), embedder.encode(["", "red"]))


def test_t5_with_weights_of_a_checkpoint_fetches_none(t5, tmp_path):
    trained = FrozenT5Embedder(t5, max_length=5)
    trained.prepare()
    save_tokenizer(tmp_path)  # architecture and tokenizer, no weights
    T5Config(**CONFIG).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"the text encoder: the directory '{tmp_path}' lacks"):
        FrozenT5Embedder(str(tmp_path)).prepare()
    restored = FrozenT5Embedder(str(tmp_path), max_length=5)
    restored.load_state_dict(trained.state_dict())
    assert torch.equal(restored(["a red"]), trained(["a red"]))


def test_t5_of_a_directory_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"the text encoder's configuration: .*config\.json"):
        FrozenT5Embedder(str(tmp_path))


def test_t5_of_a_name_that_cannot_be_had_says_how_to_get_it(tmp_path):
    name = str(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=rf"hf download {name} --local-dir DIR"):
        FrozenT5Embedder(name)


@pytest.mark.parametrize(
    ("size", "width", "parameters"), [("small", 512, 35_332_800), ("large", 1024, 341_231_104)]
)
def test_the_architecture_of_a_known_name_needs_no_network(size, width, parameters):
    with torch.device("meta"):
        embedder = FrozenT5Embedder(f"google/t5-v1_1-{size}")
    assert embedder.embed_dim == width
    assert sum(p.numel() for p in embedder.parameters()) == parameters


def test_a_tokenizer_of_sentencepiece_alone_says_what_it_needs(t5, tmp_path, monkeypatch):
    (tmp_path / "spiece.model").write_bytes(b"no model")
    monkeypatch.setattr("ldm.conditioning.t5.find_spec", lambda name: None)
    embedder = FrozenT5Embedder(t5, tokenizer=str(tmp_path))
    with pytest.raises(ConfigError, match=r"pip install sentencepiece.*\n?.*google-t5/t5-small"):
        embedder.prepare()


def test_a_tokenizer_may_lie_elsewhere(t5, tmp_path):
    save_tokenizer(tmp_path)
    embedder = FrozenT5Embedder(t5, max_length=3, tokenizer=str(tmp_path))
    assert embedder.tokenizer(["red"]).tolist() == [[4, 1, 0]]


def test_a_tokenizer_with_more_tokens_than_t5_knows_is_refused(tmp_path):
    save_tokenizer(tmp_path)
    T5Config(**CONFIG | {"vocab_size": 104}).save_pretrained(tmp_path)
    message = r"has 105 tokens, the text encoder .* knows 104; expected at least as many"
    with pytest.raises(ConfigError, match=message):
        FrozenT5Embedder(str(tmp_path)).prepare()


def test_t5_is_checked_by_its_signature():
    target = "ldm.modules.encoders.modules.FrozenT5Embedder"
    with pytest.raises(ConfigError, match=r"max_lenght.*max_length"):
        check({"model": {"target": target, "params": {"max_lenght": 5}}})
