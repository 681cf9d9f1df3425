"""scripts/train_clip.py: a tokenizer of words, pairs that find each other, a directory to load."""

import math

import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from ldm.cli.exits import exit_code
from ldm.conditioning.clip import FrozenClipImageEmbedder, FrozenCLIPTextEmbedder
from ldm.data.scenes import vocabulary
from tests.cli.runs import script, script_module


@pytest.fixture(scope="module")
def module():
    return script_module("train_clip")


def test_pairs_are_merged_by_how_frequent_they_are(module):
    # ab is there twice, then abc</w> is one pair
    assert module.byte_pairs(["abc", "ab", "abx"]) == [
        ("a", "b"),
        ("ab", "x</w>"),
        ("ab", "c</w>"),
        ("a", "b</w>"),
    ]


def test_every_word_of_a_scene_is_one_token(module, tmp_path):
    module.save_tokenizer(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    ids = [tokenizer(word)["input_ids"] for word in vocabulary()]
    assert all(len(each) == 3 for each in ids)
    assert {(each[0], each[2]) for each in ids} == {(0, 1)}
    assert len({each[1] for each in ids}) == len(ids)


def test_a_caption_that_a_batch_has_twice_is_not_told_apart_from_itself(module, tmp_path):
    module.save_tokenizer(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    model = CLIPModel(module.small_clip(len(tokenizer), 16, 16, 8)).eval()
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        twice = module.pair_loss(model, tokenizer, images.repeat(2, 1, 1, 1), ["a red circle"] * 2)
        other = ["a red circle", "a red circle", "a blue cross"]
        model.logit_scale.fill_(-math.inf)  # all pairs are equally likely
        third = module.pair_loss(model, tokenizer, images.repeat(3, 1, 1, 1), other)
    assert twice.item() == 0
    assert third.item() == pytest.approx((2 * math.log(2) + math.log(3)) / 3)


def test_captions_leave_size_and_place_unsaid(module):
    text = "a small red circle at the top on white"
    assert module.shortened(text, False, False) == text
    assert module.shortened(text, True, False) == "a red circle at the top on white"
    assert module.shortened(text, True, True) == "a red circle on white"


@pytest.mark.slow
def test_what_is_trained_is_loaded_like_any_other(tmp_path, capsys):
    small = ["--size", "16", "--patch", "8", "--width", "16", "--batch-size", "4"]
    words = ["--out", str(tmp_path), "--steps", "2", "--device", "cpu", *small]
    assert exit_code(script("train_clip"), words) == 0
    assert "held-out pictures is found among all 298" in capsys.readouterr().out
    texts = FrozenCLIPTextEmbedder(str(tmp_path))(["a red circle", "a blue square"])
    assert texts.shape == (2, 16)
    assert not torch.equal(texts[0], texts[1])
    assert FrozenClipImageEmbedder(str(tmp_path))(torch.zeros(1, 3, 16, 16)).shape == (1, 16)


def test_networks_that_do_not_fit_are_refused(tmp_path, caplog):
    assert exit_code(script("train_clip"), ["--out", str(tmp_path), "--width", "20"]) == 2
    assert exit_code(script("train_clip"), ["--out", str(tmp_path), "--patch", "5"]) == 2
    assert "--width 20: expected a multiple of 16" in caplog.text
    assert "--patch 5: expected a divisor of --size 32" in caplog.text
