"""A job of captions encodes each of them once, and draws what it would draw otherwise."""

import pytest
import torch

from ldm.cli.sampling.text import TextToImage
from ldm.conditioning.encodings import Encodings
from ldm.config import instantiate_model, load, to_plain, without_checkpoints
from tests.cli.jobs import draw, job
from tests.cli.runs import ROOT, pixels
from tests.reference import fill

RED, BLUE = "a red circle", "a blue square"


@pytest.fixture(scope="module")
def model():
    config = to_plain(load([ROOT / "configs" / "tiny" / "ldm-text.yaml"]))["model"]
    block = without_checkpoints(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # where the vocabulary is
        made = instantiate_model(block)
        made.conditioner.prepare()
    return fill(made).eval()


@pytest.fixture
def encoded(model):
    """The captions of every call of the encoder."""
    seen = []
    hook = model.cond_stage_model.register_forward_pre_hook(
        lambda module, given: seen.append(list(given[0]))
    )
    yield seen
    hook.remove()


def test_a_batch_of_one_caption_encodes_it_once_and_the_empty_one_once(model, encoded):
    model.sample(range(4), {"caption": [RED] * 4}, steps=2, scale=3.0)
    assert encoded == [[RED], [""]]


def test_without_guidance_the_empty_caption_is_not_encoded(model, encoded):
    model.sample(range(2), {"caption": [RED, BLUE]}, steps=2)
    assert encoded == [[RED, BLUE]]


def test_a_negative_prompt_is_encoded_once(model, encoded):
    negative = {"caption": ["blurred"] * 2}
    model.sample(range(2), {"caption": [RED, BLUE]}, steps=2, scale=3.0, negative=negative)
    assert encoded == [[RED, BLUE], ["blurred"]]


def test_a_job_encodes_each_caption_once_for_all_of_its_batches(model, encoded, tmp_path):
    words = ["--prompt", RED, "--prompt", BLUE, "--n", 6, "--batch-size", 3, "--steps", 2]
    draw(model, tmp_path, *words, task=TextToImage())
    assert encoded == [[RED], [""], [BLUE]]


def test_pictures_do_not_depend_on_the_batches_before(model, tmp_path):
    words = ["--prompt", RED, "--n", 4, "--batch-size", 2, "--steps", 3]
    draw(model, tmp_path / "job", *words, task=TextToImage())
    # the second batch alone, as --from-png draws it
    draw(model, tmp_path / "again", *words[:2], "--n", 2, *words[4:], task=TextToImage(), seed=2)
    for one, other in (("00002.png", "00000.png"), ("00003.png", "00001.png")):
        first, second = pixels(tmp_path / "job" / one), pixels(tmp_path / "again" / other)
        assert (first == second).all()


def test_an_image_hardly_depends_on_the_captions_beside_its_own(model):
    options = {"steps": 3, "scale": 2.0}
    together = model.sample([1, 2, 3], {"caption": [BLUE, RED, RED]}, **options)
    alone = model.sample([2], {"caption": [RED]}, **options)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-5)


def test_encodings_given_by_the_caller_are_kept_between_calls(model, encoded):
    encodings = Encodings()
    for _ in range(2):
        model.sample([1], {"caption": [RED]}, steps=2, scale=2.0, encodings=encodings)
    assert encoded == [[RED], [""]]


def told_of(model, out, caplog, *prompts):
    words = [word for prompt in prompts for word in ("--prompt", prompt)]
    job(model, out, *words, "--n", 2, task=TextToImage())
    return [line for line in caplog.messages if "vocabulary" in line]


def test_words_that_the_encoder_does_not_know_are_told_once_for_each_caption(
    model, tmp_path, caplog_ldm
):
    assert told_of(model, tmp_path, caplog_ldm, RED, "a Odd circle.", "a circle.") == [
        "'a Odd circle.': 'Odd', '.' are not in the vocabulary of BERTEmbedder, which reads [UNK]",
        "'a circle.': '.' is not in the vocabulary of BERTEmbedder, which reads [UNK]",
    ]


def test_captions_of_known_words_are_drawn_without_a_word(model, tmp_path, caplog_ldm):
    assert told_of(model, tmp_path, caplog_ldm, RED, BLUE) == []
