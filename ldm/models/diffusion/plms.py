"""The published interface of the pseudo linear multistep sampler."""

from __future__ import annotations

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.samplers.base import Sampler
from ldm.samplers.grid import PublishedUniform
from ldm.samplers.plms import PLMS

__all__ = ["PLMSSampler"]


class PLMSSampler(DDIMSampler):
    """PLMS on the published grid of times; see `DDIMSampler`."""

    def sampler(self, eta: float, temperature: float) -> Sampler:
        """The step rule; ValueError for eta other than 0, which it does not have."""
        if eta != 0:
            raise ValueError(f"eta is {eta}, but PLMS is deterministic: expected 0")
        return PLMS(grid=PublishedUniform())
