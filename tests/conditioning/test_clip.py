"""CLIP's embeddings of texts and images against transformers' own."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTokenizer

from ldm.conditioning.clip import FrozenClipImageEmbedder, FrozenCLIPTextEmbedder
from ldm.conditioning.conditioner import Conditioner, Part
from ldm.config import ConfigError
from ldm.nets.clip import to_clip_pixels
from tests.cli.clips import save_clip

ENCODERS = [FrozenCLIPTextEmbedder, FrozenClipImageEmbedder]
IMAGES = torch.randint(0, 256, (2, 20, 24, 3), generator=torch.Generator().manual_seed(0)).byte()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return str(save_clip(tmp_path_factory.mktemp("clip")))


def features(found):
    """The features, which newer releases return among others."""
    return found if isinstance(found, torch.Tensor) else found.pooler_output


@torch.no_grad()
def test_texts_are_embedded_as_transformers_does(clip):
    texts = ["a red", "red red a"]
    source = CLIPModel.from_pretrained(clip)
    tokens = CLIPTokenizer.from_pretrained(clip)(
        texts, padding="max_length", max_length=8, return_tensors="pt"
    )
    want = features(source.get_text_features(**tokens))
    embedder = FrozenCLIPTextEmbedder(clip)
    torch.testing.assert_close(embedder(texts), F.normalize(want, dim=1))
    assert torch.equal(embedder(texts), embedder(embedder.tokenizer(texts)))
    raw = FrozenCLIPTextEmbedder(clip, normalize=False, n_repeat=3)
    torch.testing.assert_close(raw.encode(texts), want[:, None].expand(2, 3, 8))
    assert (embedder.embed_dim, embedder.max_length) == (8, 8)


@torch.no_grad()
def test_images_are_embedded_as_transformers_does(clip):
    source = CLIPModel.from_pretrained(clip)
    images = IMAGES.permute(0, 3, 1, 2) / 127.5 - 1
    want = features(source.get_image_features(pixel_values=to_clip_pixels(images, 16)))
    embedder = FrozenClipImageEmbedder(clip, n_repeat=2)
    torch.testing.assert_close(embedder(images), F.normalize(want, dim=1))
    found = embedder.encode(IMAGES)
    torch.testing.assert_close(found, F.normalize(want, dim=1)[:, None].expand(2, 2, 8))


def test_an_image_that_is_left_out_is_a_vector_of_zeros(clip):
    embedder = FrozenClipImageEmbedder(clip, drop_rate=0.5)
    found = embedder.encode(embedder.drop(IMAGES, torch.tensor([True, False])))
    assert torch.equal(found[0], torch.zeros(1, 8))
    assert torch.equal(found[1], embedder.encode(IMAGES)[1])
    null = Conditioner((Part(embedder, "image", "crossattn"),)).null({"image": IMAGES})
    assert not null.crossattn.any()


def test_a_text_that_is_left_out_is_empty(clip):
    embedder = FrozenCLIPTextEmbedder(clip)
    assert embedder.drop(["a", "red"], torch.tensor([False, True])) == ["a", ""]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_encoder_is_frozen_and_stays_in_evaluation_mode(clip, encoder):
    embedder = encoder(clip)
    assert not any(parameter.requires_grad for parameter in embedder.parameters())
    assert not embedder.train().transformer.training


@pytest.mark.parametrize("encoder", ENCODERS)
def test_weights_are_loaded_when_it_is_prepared_unless_a_checkpoint_brought_them(
    clip, encoder, tmp_path
):
    trained, bare = encoder(clip), tmp_path / "bare"
    trained.prepare()
    shutil.copytree(clip, bare, ignore=shutil.ignore_patterns("model.safetensors"))
    with pytest.raises(ConfigError, match=f"CLIP: the directory '{bare}' lacks a file"):
        encoder(str(bare)).prepare()
    restored = encoder(str(bare))
    restored.load_state_dict(trained.state_dict())
    restored.prepare()
    for name, weight in restored.state_dict().items():
        assert torch.equal(weight, trained.state_dict()[name])


@pytest.mark.parametrize("encoder", ENCODERS)
def test_weights_of_something_else_are_refused(clip, encoder, tmp_path):
    shutil.copytree(clip, tmp_path / "clip")
    path = tmp_path / "clip" / "model.safetensors"
    weights = load_file(path)
    del weights["visual_projection.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"weights lack visual_projection\.weight"):
        encoder(str(tmp_path / "clip")).prepare()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_without_a_network_the_command_that_fetches_it_is_said(encoder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with torch.device("meta"):  # of the published size
        embedder = encoder()
    assert embedder.embed_dim == 768
    with pytest.raises(ConfigError, match=r"hf download openai/clip-vit-large-patch14 --local-dir"):
        embedder.prepare()


def test_a_directory_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"CLIP's configuration: .* lacks a file.*config.json"):
        FrozenClipImageEmbedder(str(tmp_path))
    with pytest.raises(ValueError, match="antialias is false; expected true"):
        FrozenClipImageEmbedder(str(tmp_path), antialias=False)
