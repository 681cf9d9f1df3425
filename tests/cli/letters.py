"""A model of captions that needs no tokenizer."""

import torch

from ldm.conditioning.base import Embedder
from ldm.config import instantiate_model
from tests.cli.runs import second_stage


class Letters(Embedder):
    """An encoder of captions: how long each is, of which none has nothing."""

    reads = "text"
    embed_dim = 16

    def encode(self, value):
        return torch.tensor([[[float(len(text))] * 16] for text in value])

    def drop(self, value, dropped):
        return ["" if gone else text for text, gone in zip(value, dropped, strict=True)]


def captioned():
    """A latent diffusion model of captions, with weights at random."""
    model = second_stage()["model"]
    for key in ("cond_stage_key", "conditioning_key"):
        del model["params"][key]
    params = model["params"] | {"cond_stage_config": [Letters(key="caption")]}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return instantiate_model({**model, "params": params}).eval()
