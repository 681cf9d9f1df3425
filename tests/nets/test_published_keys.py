"""Names and shapes of the parameters of every published network, on the meta device."""

import json

import pytest
import torch

from ldm.nets.autoencoder import Decoder, Encoder
from ldm.nets.text import Encoder as TextEncoder
from ldm.nets.text import TransformerWrapper
from ldm.nets.unet import UNetModel
from tests.reference_configs import NAMES, ROOT
from tests.reference_state_dicts import listing


def facts(name):
    return json.loads((ROOT / f"{name}.json").read_text())


FIRST_STAGES = {name: prefix for name in NAMES for prefix in ["", "first_stage_model."]}
FACTS = {name: facts(name) for name in NAMES}
DENOISERS = [name for name in NAMES if "denoiser" in FACTS[name]]
AUTOENCODERS = [
    (name, prefix, arguments)
    for name in NAMES
    for prefix, arguments in (
        ("", FACTS[name].get("network")),
        ("first_stage_model.", FACTS[name].get("first_stage", {}).get("network")),
    )
    if arguments
]
TEXT = [
    name
    for name in DENOISERS
    if isinstance(FACTS[name]["conditioner"], dict)
    and FACTS[name]["conditioner"]["class"].endswith("BERTEmbedder")
]


def published(name, prefix):
    return {
        key.removeprefix(prefix): tuple(shape)
        for key, (shape, _) in listing(name)["state_dict"].items()
        if key.startswith(prefix)
    }


def described(net):
    return {key: tuple(value.shape) for key, value in net.state_dict().items()}


@pytest.mark.parametrize("name", DENOISERS)
def test_unet_has_the_published_keys(name):
    with torch.device("meta"):
        net = UNetModel(**FACTS[name]["denoiser"]["arguments"])
    assert list(described(net).items()) == list(published(name, "model.diffusion_model.").items())


@pytest.mark.parametrize(("name", "prefix", "arguments"), AUTOENCODERS)
def test_encoder_and_decoder_have_the_published_keys(name, prefix, arguments):
    with torch.device("meta"):
        nets = {"encoder.": Encoder(**arguments), "decoder.": Decoder(**arguments)}
    for half, net in nets.items():
        assert described(net) == published(name, prefix + half)


@pytest.mark.parametrize("name", TEXT)
def test_text_transformer_has_the_published_keys(name):
    arguments = {"vocab_size": 30522, "max_seq_len": 77}
    arguments |= FACTS[name]["conditioner"]["arguments"]
    with torch.device("meta"):
        net = TransformerWrapper(
            num_tokens=arguments["vocab_size"],
            max_seq_len=arguments["max_seq_len"],
            attn_layers=TextEncoder(arguments["n_embed"], arguments["n_layer"]),
        )
    assert described(net) == published(name, "cond_stage_model.transformer.")


def test_every_network_of_the_listings_is_covered():
    assert (len(DENOISERS), len(AUTOENCODERS), len(TEXT)) == (20, 33, 3)
