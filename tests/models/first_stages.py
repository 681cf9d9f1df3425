"""Small first stages, images and noise for the tests of their training."""

from dataclasses import dataclass
from functools import cache

import torch
from torch.utils.data import Dataset

from ldm.losses.autoencoder import LPIPSWithDiscriminator, VQLPIPSWithDiscriminator
from ldm.losses.perceptual import LPIPS
from ldm.models.autoencoder import AutoencoderKL, VQModel
from ldm.models.first_stage_step import MicroBatch
from tests.reference import fill

NETWORK = {
    "z_channels": 3,
    "resolution": 16,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}
# of the game, at once
EVERY_RULE = {
    "disc_warmup": 1,
    "disc_loss": "non-saturating",
    "disc_spectral_norm": True,
    "disc_augment": ["color", "translation", "cutout"],
    "r1_weight": 1.0,
    "r1_every": 2,
    "lecam_weight": 0.1,
}
LOSS = {"disc_start": 0, "perceptual_weight": 0.0, "disc_ndf": 8, "disc_num_layers": 1}


def tiny_kl(loss=(), network=(), **options):
    """KL autoencoder of 0.4 M parameters, weights by rule."""
    loss = tiny_loss(LPIPSWithDiscriminator, {"kl_weight": 1e-3, **dict(loss)})
    return filled(
        AutoencoderKL({**NETWORK, "double_z": True, **dict(network)}, loss, embed_dim=3, **options)
    )


def tiny_vq(loss=(), network=(), **options):
    """VQ autoencoder of the same size, weights by rule."""
    loss = tiny_loss(VQLPIPSWithDiscriminator, dict(loss))
    network = {**NETWORK, "double_z": False, **dict(network)}
    return filled(VQModel(network, loss, n_embed=16, embed_dim=3, **options))


def tiny_loss(cls, changes):
    """A loss; all share one LPIPS with drawn weights, which takes long to build."""
    arguments = {**LOSS, **changes}
    weight = arguments.pop("perceptual_weight")
    loss = cls(**arguments, perceptual_weight=0.0)
    if weight:
        loss.perceptual_weight, loss.perceptual_loss = weight, perceptual_network()
    return loss


@cache
def perceptual_network():
    network = LPIPS()
    network.load_state_dict(network.state_dict())
    return network


def filled(model):
    """Weights by rule, but for LPIPS."""
    fill(model.networks())
    fill(model.loss.discriminator, prefix="loss.discriminator.")
    if model.model_ema is not None:
        model.model_ema.module.load_state_dict(model.networks().state_dict())
    return model.train()


FAMILY = {"kl": tiny_kl, "vq": tiny_vq}


@dataclass(frozen=True)
class GivenDraws:
    """Noise that a test supplies, by stream."""

    noise: dict

    def normal(self, shape, stream):
        assert tuple(self.noise[stream].shape[1:]) == tuple(shape)
        return self.noise[stream]


def micro_batches(*sizes, side=16):
    """The first images of one fixed sequence, with their noise, cut into micro-batches."""
    generator = torch.Generator().manual_seed(5)
    total = sum(sizes)
    images = torch.rand(total, 3, side, side, generator=generator) * 2 - 1
    noise = torch.randn(2, total, 3, side // 2, side // 2, generator=generator)
    names = ("posterior", "posterior for the discriminator")
    parts = [images.split(sizes), *(n.split(sizes) for n in noise)]
    return [
        MicroBatch(x, GivenDraws(dict(zip(names, draws, strict=True))))
        for x, *draws in zip(*parts, strict=True)
    ]


class Images(Dataset):
    """Channels-last float images in [-1, 1], each a function of its index."""

    def __init__(self, length, side=16):
        self.length, self.side = length, side

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        image = torch.rand(self.side, self.side, 3, generator=generator) * 2 - 1
        return {"image": image, "sample_id": index}
