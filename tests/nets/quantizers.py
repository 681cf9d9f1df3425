"""Small quantizers of every kind, and latents for them."""

import torch

from ldm.nets.quantizer import VectorQuantizer
from ldm.nets.quantizer_cures import KMeansInit
from ldm.nets.quantizer_ema import EMAVectorQuantizer
from ldm.nets.quantizer_fsq import FSQ
from ldm.nets.quantizer_gumbel import GumbelQuantizer
from ldm.nets.quantizer_simvq import SimVQ

K, D = 12, 3
CURES = {
    "l2_norm": {"l2_norm": True},
    "rotation": {"rotation": True},
    "restart": {"restart": True},
    "kmeans_init": {"kmeans_init": KMeansInit(latents_per_code=2)},
    "all cures": {
        "l2_norm": True,
        "rotation": True,
        "restart": True,
        "kmeans_init": KMeansInit(latents_per_code=2),
    },
}
QUANTIZERS = {
    "published": lambda: VectorQuantizer(K, D),
    "the paper's": lambda: VectorQuantizer(K, D, legacy=False),
    **{
        f"published, {name}": lambda cure=cure: VectorQuantizer(K, D, **cure)
        for name, cure in CURES.items()
    },
    "ema": lambda: EMAVectorQuantizer(K, D),
    **{
        f"ema, {name}": lambda cure=cure: EMAVectorQuantizer(K, D, **cure)
        for name, cure in CURES.items()
    },
    "simvq": lambda: SimVQ(K, D),
    "simvq, rotation": lambda: SimVQ(K, D, rotation=True),
    "fsq": lambda: FSQ([3, 2, 2]),
    "gumbel": lambda: GumbelQuantizer(K, D),
    "gumbel, soft": lambda: GumbelQuantizer(K, D, straight_through=False),
}


def made(name, seed=0):
    torch.manual_seed(seed)
    return QUANTIZERS[name]()


def latents(seed=1, batch=2, channels=D):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, 4, 5, generator=generator).requires_grad_()


def rows(x):
    """(B, d, h, w) to (B h w, d)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def noise(quantizer, z, seed=0):
    """What a pass of these latents draws codes by, if it does."""
    shape = quantizer.noise_shape(z)
    if shape is None:
        return None
    return torch.randn(len(z), *shape, generator=torch.Generator().manual_seed(seed))


def train(quantizer, batches, optimizer=None, step=0):
    """One optimizer step of a quantizer alone: to its loss, and what it learns without one."""
    quantizer.train().begin_step(step)
    for number, z in enumerate(batches):
        loss = quantizer(z, noise(quantizer, z, seed=100 * step + number))[1]
        if optimizer is not None:
            (loss / len(batches)).backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()
    quantizer.end_step()
