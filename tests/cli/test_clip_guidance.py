"""Drawing towards what a text says, as a CLIP in a directory sees it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.cli.sampling.clip import clip_of
from ldm.cli.sampling.text import TextToImage
from ldm.config import ConfigError, instantiate_model
from ldm.guidance.clip import CLIPDissimilarity
from ldm.tensor import to_image_tensor
from tests.cli.clips import LAYERS, TEXT, save_clip
from tests.cli.jobs import draw, job
from tests.cli.letters import captioned
from tests.cli.runs import unconditional


@pytest.fixture(scope="module")
def plain():
    """A model whose decoder and network are not trained, which draws something grey."""
    model = unconditional()["model"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return instantiate_model(model).eval()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


def loaded(model, directory, tmp_path):
    return clip_of(job(model, tmp_path, "--clip", directory, "--clip-prompt", "a").args, model)


def identity(model, directory, tmp_path):
    return job(model, tmp_path, "--clip", directory, "--clip-prompt", "a").record.flags[
        "clip_sha256"
    ]


def unlike(clip, images, texts):
    """The loss of images (H, W, C) uint8."""
    loss = CLIPDissimilarity(clip.embed_image, clip.embed_text(texts), clip.size)
    with torch.no_grad():
        return loss(to_image_tensor(torch.from_numpy(np.stack(images))))


# a decoder that is not trained passes little on, and a network that says eps = 0 multiplies it
@pytest.mark.parametrize(("through", "scale"), [("denoiser", 100), ("x0", 50_000)])
def test_images_are_more_like_the_text_than_without(plain, clip, tmp_path, through, scale):
    words = ["--n", 3, "--steps", 5]
    told = ["--clip", clip, "--clip-prompt", "red", "--clip-through", through]
    told += ["--clip-scale", scale]
    without = job(plain, tmp_path, *words).draw(range(3))
    guided = job(plain, tmp_path, *words, *told).draw(range(3))
    seen = loaded(plain, clip, tmp_path)
    before, after = (unlike(seen, images, ["red"] * 3) for images in (without, guided))
    assert (after < before - 0.05).all()


def test_a_scale_of_0_leaves_everything_as_it_is(plain, clip, tmp_path):
    words = ["--n", 2, "--steps", 3]
    told = ["--clip", clip, "--clip-prompt", "red", "--clip-scale", 0]
    without = job(plain, tmp_path, *words).draw(range(2))
    assert np.array_equal(job(plain, tmp_path, *words, *told).draw(range(2)), without)


def test_without_a_text_of_its_own_it_is_the_caption_of_each_image(clip, tmp_path):
    model = captioned()
    words = ["--prompt", "red", "--prompt", "b a", "--n", 1, "--steps", 3, "--scale", 1]
    each = job(model, tmp_path, *words, "--clip", clip, task=TextToImage())
    together = each.draw(range(2))
    for index, text in enumerate(("red", "b a")):
        told = ["--clip", clip, "--clip-prompt", text]
        same = job(model, tmp_path, *words, *told, task=TextToImage()).draw(range(2))
        assert np.array_equal(same[index], together[index])
        assert not np.array_equal(same[1 - index], together[1 - index])


def test_a_picture_says_which_clip_saw_what(plain, clip, tmp_path):
    draw(plain, tmp_path, "--n", 1, "--steps", 2, "--clip", clip, "--clip-prompt", "a red")
    with Image.open(tmp_path / "00000.png") as image:
        assert image.text["clip_prompt"] == "a red"
        assert image.text["clip_sha256"] == identity(plain, clip, tmp_path)


@pytest.mark.parametrize("name", ["config.json", "merges.txt", "model.safetensors"])
def test_a_clip_is_known_by_all_that_it_is_made_of(plain, tmp_path, name):
    one, same, other = (save_clip(tmp_path / str(index)) for index in range(3))
    path = other / name
    if name == "config.json":
        told = json.loads(path.read_text())
        told["text_config"]["hidden_act"] = "gelu"
        path.write_text(json.dumps(told))
    elif name == "merges.txt":
        path.write_text("#version: 0.2\nr e\n")
    else:
        state = {key: 2 * value for key, value in load_file(path).items()}
        save_file(state, path, metadata={"format": "pt"})
    found = [identity(plain, each, tmp_path / "out") for each in (one, same, other)]
    assert found[0] == found[1] != found[2]
    assert len(found[0]) == 64


def test_weights_may_be_of_torch_and_give_the_same(plain, clip, tmp_path):
    other = save_clip(tmp_path / "clip", is_safe=False)
    ours, theirs = (loaded(plain, each, tmp_path) for each in (clip, other))
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours.embed_image(pixels), theirs.embed_image(pixels))
    assert torch.equal(ours.embed_text(["a red"]), theirs.embed_text(["a red"]))


def test_embeddings_are_those_of_the_whole_model(plain, clip, tmp_path):
    seen = loaded(plain, clip, tmp_path)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    tokens = seen.tokenizer(["red", "b a red"], padding=True, return_tensors="pt")
    with torch.no_grad():
        whole = seen.model(pixel_values=pixels, **tokens)
    for own, want in (
        (seen.embed_image(pixels), whole.image_embeds),
        (seen.embed_text(["red", "b a red"]), whole.text_embeds),
    ):
        torch.testing.assert_close(own / own.norm(dim=1, keepdim=True), want)


def test_a_text_is_read_once_in_a_job_and_told_once_that_it_is_cut(
    clip, tmp_path, monkeypatch, caplog_ldm
):
    read = []
    forward = CLIPTextModel.forward

    def reading(self, **tokens):
        read.append(len(tokens["input_ids"]))
        return forward(self, **tokens)

    monkeypatch.setattr(CLIPTextModel, "forward", reading)
    words = ["--prompt", "a " * 20, "--prompt", "red", "--n", 2, "--batch-size", 1, "--steps", 2]
    draw(captioned(), tmp_path, *words, "--clip", clip, task=TextToImage())
    assert read == [1, 1]
    assert caplog_ldm.text.count("of which CLIP reads 8") == 1


def test_a_text_is_embedded_the_same_whatever_stands_beside_it(plain, clip, tmp_path):
    one, other = (loaded(plain, clip, tmp_path) for _ in range(2))
    alone = one.embed_text(["red"])
    together = other.embed_text(["b a red a b", "red", "a", "red"])
    assert torch.equal(together[[1, 3]], alone.expand(2, -1))


def test_of_many_texts_the_last_are_remembered(plain, clip, tmp_path, monkeypatch):
    seen = loaded(plain, clip, tmp_path)
    monkeypatch.setattr("ldm.cli.sampling.clip._TEXTS", 2)
    assert seen.embed_text(["red", "a", "b", "red"]).shape == (4, 8)
    assert list(seen._known) == ["a", "b"]


def test_a_text_that_is_too_long_is_told(plain, clip, tmp_path, caplog_ldm):
    seen = loaded(plain, clip, tmp_path)
    assert seen.embed_text(["a " * 20]).shape == (1, 8)
    assert "has 22 tokens, of which CLIP reads 8" in caplog_ldm.text


@pytest.mark.parametrize(
    ("lacks", "expected"),
    [
        ("config.json", "lacks a file: expected CLIP in transformers' format"),
        ("model.safetensors", "lacks a file: .*model.safetensors or pytorch_model.bin"),
        ("merges.txt", "lacks a file: .*tokenizer.json or vocab.json with merges.txt"),
    ],
)
def test_a_missing_file_is_explained(plain, tmp_path, lacks, expected):
    clip = save_clip(tmp_path / "clip")
    (clip / lacks).unlink()
    with pytest.raises(ConfigError, match=f"--clip .*clip: {expected}"):
        loaded(plain, clip, tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocab.json"])
def test_a_damaged_file_is_explained(plain, tmp_path, name):
    clip = save_clip(tmp_path / "clip")
    (clip / name).write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigError, match=r"--clip .*clip: cannot be read: ."):
        loaded(plain, clip, tmp_path)


def test_weights_of_something_else_are_not_made_up(plain, tmp_path):
    clip = save_clip(tmp_path / "clip")
    text = CLIPTextModel(CLIPTextConfig(**LAYERS, **TEXT, max_position_embeddings=8))
    config = (clip / "config.json").read_text()
    text.save_pretrained(clip)
    (clip / "config.json").write_text(config)
    with pytest.raises(ConfigError, match="is no CLIP of images and texts: it lacks"):
        loaded(plain, clip, tmp_path)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--clip", "nowhere", "--clip-prompt", "a"], "--clip nowhere: there is no such directory"),
        (["--clip", "nowhere"], "--clip-prompt is needed: what CLIP is to see"),
        (["--clip-prompt", "a"], "there is no CLIP to see it; give --clip DIR"),
        (
            ["--clip", "x", "--clip-prompt", "a", "--clip-scale", -1],
            "--clip-scale -1.0: expected 0",
        ),
        (["--clip", "x", "--clip-scale", "nan"], "--clip-scale nan: expected a number"),
    ],
)
def test_flags_that_ask_for_nothing_are_refused(plain, tmp_path, words, expected):
    with pytest.raises(ConfigError, match=expected):
        job(plain, tmp_path, *words)
