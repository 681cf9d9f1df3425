"""The denoising half of a reference model: network, schedule and log-variance of a case's spec."""

import numpy as np
import torch
from torch import nn

from ldm.diffusion.denoiser import DiffusionWrapper, NetDenoiser
from ldm.diffusion.schedule import PublishedSchedule
from ldm.nets.unet import UNetModel
from tests.reference import fill, key_crc32

SCHEDULE_KEYS = ("timesteps", "beta_schedule", "linear_start", "linear_end", "cosine_s")


def schedule_of(params):
    """The noise schedule of a case's constructor parameters."""
    return PublishedSchedule(**{key: params[key] for key in SCHEDULE_KEYS if key in params})


class ReferenceModel(nn.Module):
    """`model.diffusion_model.*` and `logvar`, filled by rule under their full keys."""

    def __init__(self, case):
        super().__init__()
        params = case.params
        unet = UNetModel(**params["unet_config"]["params"])
        self.model = DiffusionWrapper(unet, conditioning_key(case.spec["constructor"]))
        if "logvar_init" in params:
            logvar = torch.full((params["timesteps"],), params["logvar_init"])
            learned = params.get("learn_logvar", False)
            self.logvar = nn.Parameter(logvar) if learned else logvar
        else:
            self.logvar = None
        self.parameterization = params.get("parameterization", "eps")
        self.schedule = schedule_of(params)
        fill(self).eval()
        filled = case.spec["rule_filled"][0]
        if filled["parameter_tensors"] == len(list(self.parameters())):
            assert key_crc32(self) == filled["key_crc32"]
        else:  # the case has a first stage, whose keys are checked where it is built
            assert "first_stage_model" not in dict(self.named_modules())
            assert "VQModelInterface" in params["first_stage_config"]["target"]

    @property
    def denoiser(self):
        """The network as samplers and the objective take it."""
        return NetDenoiser(self.model, self.schedule, self.parameterization)


def conditioning_key(constructor):
    """The published default: none, else concat unless switched off."""
    params = constructor["params"]
    unconditional = params.get("cond_stage_config") == "__is_unconditional__"
    if constructor["target"].endswith(".DDPM") or unconditional:
        return None
    return params.get("conditioning_key") or "concat"


class RecordedDraws:
    """The Gaussian draws of a case: stream "<kind> <i>" is its input `<name>_<i + first>`."""

    def __init__(self, case, first=0, **names):
        self.case, self.first, self.names = case, first, names

    def normal(self, shape, stream):
        kind, index = stream.rsplit(" ", 1)
        noise = self.case.input(f"{self.names[kind]}_{int(index) + self.first}")
        assert tuple(noise.shape[1:]) == tuple(shape)
        return noise

    def uniform(self, stream):
        raise AssertionError(f"no case draws uniform numbers, asked for {stream}")


def centre_mask(shape):
    """Ones, zero in the centre block: the mask that cases describe in words."""
    mask = np.ones(shape, dtype=np.float32)
    height, width = shape[-2:]
    mask[..., height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = 0
    return torch.from_numpy(mask)
