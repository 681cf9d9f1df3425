"""Small diffusion models, data and draws for the tests of the second stage."""

from dataclasses import dataclass

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from ldm.config import ConfigError, instantiate_from_config
from ldm.data.module import collate
from ldm.models.diffusion.assemble import LatentDiffusionConfig, assemble
from ldm.models.diffusion.ddpm import DDPM, LatentDiffusion
from tests.models.first_stages import NETWORK, Images
from tests.reference import fill

ON_META = torch.device("meta")

UNET = {
    "image_size": 4,
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 2],
    "num_heads": 2,
}
ATTENDING = {"use_spatial_transformer": True, "context_dim": 8}
FIRST_STAGE = {**NETWORK, "resolution": 8}


def unet(**changes):
    return {"target": "ldm.nets.unet.UNetModel", "params": UNET | changes}


def identity():
    return {"target": "ldm.models.autoencoder.IdentityFirstStage"}


def kl():
    params = {
        "ddconfig": FIRST_STAGE | {"double_z": True},
        "lossconfig": {"target": "torch.nn.Identity"},
        "embed_dim": 3,
    }
    return {"target": "ldm.models.autoencoder.AutoencoderKL", "params": params}


def labels(**options):
    params = {"embed_dim": 8, "n_classes": 4} | options
    return {"target": "ldm.conditioning.labels.ClassEmbedder", "params": params}


def rescaler(channels):
    target = "ldm.conditioning.spatial.SpatialRescaler"
    return {"target": target, "params": {"in_channels": 3, "out_channels": channels, "key": "map"}}


def parameters(**changes):
    """Parameters of an unconditional model on pixels of 4 x 4, in 20 steps."""
    return {
        "first_stage_config": identity(),
        "cond_stage_config": "__is_unconditional__",
        "unet_config": unet(),
        "timesteps": 20,
        "linear_start": 0.01,
        "linear_end": 0.3,
        "image_size": 4,
        **changes,
    }


def by_class(**changes):
    """Parameters of a model that attends to a class label."""
    cond = {
        "cond_stage_config": labels(),
        "cond_stage_key": "class",
        "unet_config": unet(**ATTENDING),
    }
    return parameters(
        **{"conditioning_key": "crossattn", "cond_stage_trainable": True} | cond | changes
    )


def parts(**changes):
    """Components of a model on the meta device."""
    with ON_META:
        return assemble(parameters(**changes), LatentDiffusionConfig)


def refused(match, params, schema=LatentDiffusionConfig):
    """Expect that no components can be made of these parameters."""
    with ON_META, pytest.raises(ConfigError, match=match):
        assemble(params, schema)


def latent(params=None, **changes):
    """A model with weights by rule; the average starts from them."""
    return filled(LatentDiffusion(**(parameters(**changes) if params is None else params)))


def pixel(**changes):
    """A model without any first stage."""
    params = parameters(**changes)
    for key in ("first_stage_config", "cond_stage_config"):
        params.pop(key)
    return filled(DDPM(**params))


def filled(model):
    fill(model)
    if model.model_ema is not None:
        model.model_ema.module.load_state_dict(model.model.state_dict())
    return model


def published(case):
    """The whole model of a reference case, by its published path, with weights by rule."""
    constructor = case.spec["constructor"]
    config = {"target": constructor["target"], "params": case.params}
    return filled(instantiate_from_config(config)).eval()


class Pictures(Images):
    """Images of another size, each with a class."""

    def __init__(self, length, side=4):
        super().__init__(length, side)

    def __getitem__(self, index):
        return {**super().__getitem__(index), "class": index % 4}


def batch(size=4, side=4, first=0):
    """The batch of the pictures first, first + 1, ..."""
    pictures = Pictures(first + size, side)
    return collate([pictures[index] for index in range(first, first + size)])


def loader(length=8, batch_size=4, side=4, **options):
    return DataLoader(Pictures(length, side), batch_size, collate_fn=collate, **options)


def trainer(steps=None, **options):
    """A quiet trainer on the CPU that writes nothing."""
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    limits = {} if steps is None else {"max_steps": steps, "max_epochs": steps}
    arguments = {"accelerator": "cpu", "devices": 1, "enable_model_summary": False}
    return pl.Trainer(**arguments | silent | limits | options)


@dataclass(frozen=True)
class GivenDraws:
    """Times and noise that a test supplies, by stream."""

    noise: dict
    t: torch.Tensor | None = None
    num_timesteps: int = 1000

    def normal(self, shape, stream):
        assert tuple(self.noise[stream].shape[1:]) == tuple(shape)
        return self.noise[stream]

    def uniform(self, stream):
        assert stream == "t"
        return (self.t + 0.5) / self.num_timesteps
