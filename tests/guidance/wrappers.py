"""Every denoiser around a denoiser, once, for the tests of what all of them promise."""

import torch
from torch import nn
from torch.nn import functional as F

from ldm.diffusion.denoiser import NetDenoiser
from ldm.diffusion.schedule import (
    BETA_SCHEDULES,
    PublishedSchedule,
    RectifiedFlow,
    VarianceExploding,
)
from ldm.guidance.autoguidance import Autoguided
from ldm.guidance.classifier_free import ClassifierFree
from ldm.guidance.clip import CLIPDissimilarity
from ldm.guidance.correction import Clipped, Corrected, Quantized, Thresholded
from ldm.guidance.gradient import ClassifierGuided, ImageGuided, LowResolution
from ldm.guidance.interval import Interval
from ldm.guidance.projected import Projected
from ldm.guidance.rescaled import Rescaled
from ldm.guidance.tiled import Tiled
from ldm.types import Conditioning

SIZE = (2, 8, 8)

SCHEDULES = {
    **{name: PublishedSchedule(beta_schedule=name) for name in (*BETA_SCHEDULES, "cosine")},
    "zero_terminal_snr": PublishedSchedule(zero_terminal_snr=True),
    "rectified_flow": RectifiedFlow(),
    "variance_exploding": VarianceExploding(),
}
for each in SCHEDULES.values():
    each.double()


class Net(nn.Module):
    """A prediction that depends on state, time and condition, differently for each seed."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        kernel = torch.randn(2, 2, 3, 3, generator=generator, dtype=torch.float64)
        self.kernel = nn.Parameter(kernel)

    def forward(self, x, t, cond=None):
        shift = 0 if cond is None else cond.vector
        out = nn.functional.conv2d(x / (1 + x.abs()), self.kernel, padding=1)
        return (out + (shift + t / 1000)[:, None, None, None]).tanh()


def net(schedule, parameterization="v", device="cpu", seed=0):
    return NetDenoiser(Net(seed).to(device), schedule, parameterization)


def on(device, *values):
    return torch.tensor(values, dtype=torch.float64, device=device)


def log_prob(x_t, t, cond):
    return -(x_t - 0.3).tanh().square().sum(dim=(1, 2, 3)) * (1 + cond.vector**2)


def image_guided(denoiser, schedule, device, through):
    target = torch.full((1, 2, 4, 4), 0.2, dtype=torch.float64, device=device)
    return ImageGuided(
        denoiser, schedule, LowResolution(target), 0.1, lambda z: 0.5 * z + z.sin(), through
    )


def clip_guided(denoiser, schedule, device):
    """By an embedding that is twelve numbers of the picture, of which CLIP would see 4 x 4."""
    text = torch.linspace(-1, 1, 12, device=device)[None]

    def embed(pixels):
        return F.avg_pool2d(pixels, 2).flatten(1)

    loss = CLIPDissimilarity(embed, text, 4)
    return ImageGuided(denoiser, schedule, loss, 20.0, lambda z: z[:, :1].tanh())


def free(denoiser, device, scale=3.0):
    return ClassifierFree(denoiser, scale, Conditioning(vector=on(device, -1.0)))


def projected(denoiser, schedule, device):
    return Projected(free(denoiser, device), schedule, eta=0.3, threshold=2.0, momentum=-0.5)


# name -> (denoiser, schedule, device) -> wrapper
WRAPPERS = {
    "classifier_free": lambda d, s, device: free(d, device),
    "autoguided": lambda d, s, device: Autoguided(d, net(s, "v", device, seed=1), 2.0),
    "autoguided_free": lambda d, s, device: Autoguided(free(d, device), d, 1.5),
    "projected": projected,
    "rescaled": lambda d, s, device: Rescaled(free(d, device), s, 0.7),
    "rescaled_projected": lambda d, s, device: Rescaled(projected(d, s, device), s, 0.7),
    "interval": lambda d, s, device: Interval(free(d, device), d, s, 0.1, 0.7),
    "interval_of_sigma": lambda d, s, device: Interval(free(d, device), d, s, 0.3, 3.0, "sigma"),
    "clipped": lambda d, s, device: Clipped(d, s, -0.5, 0.5),
    "thresholded": lambda d, s, device: Thresholded(d, s, 0.9, 0.5),
    "corrected": lambda d, s, device: Corrected(d, s, lambda eps, x, t, cond: 0.9 * eps),
    "quantized": lambda d, s, device: Quantized(d, torch.round),
    "tiled": lambda d, s, device: Tiled(d, window=(6, 6), stride=(2, 2)),
    "classifier": lambda d, s, device: ClassifierGuided(d, s, log_prob, 0.2),
    "image_through_denoiser": lambda d, s, device: image_guided(d, s, device, "denoiser"),
    "image_through_x0": lambda d, s, device: image_guided(d, s, device, "x0"),
    "clip": clip_guided,
    "all": lambda d, s, device: Thresholded(
        image_guided(
            Interval(Rescaled(projected(d, s, device), s), d, s, 0.1, 0.9), s, device, "x0"
        ),
        s,
    ),
}
