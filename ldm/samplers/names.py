"""Samplers and time grids by the short names that a command line takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from inspect import signature

from ldm.samplers.ancestral import Ancestral
from ldm.samplers.base import Sampler
from ldm.samplers.ddim import DDIM
from ldm.samplers.dpm import DPMSolver, DPMSolverSDE, DPMSolverSinglestep
from ldm.samplers.euler import Euler, EulerAncestral
from ldm.samplers.grid import (
    Grid,
    Karras,
    Leading,
    LogSNR,
    PublishedQuadratic,
    PublishedUniform,
    Quadratic,
    Uniform,
)
from ldm.samplers.heun import Heun
from ldm.samplers.plms import PLMS
from ldm.samplers.unipc import UniPC
from ldm.spelling import require_known

__all__ = ["GRIDS", "SAMPLERS", "sampler_named"]

# "ddpm" adds the posterior's noise ("fixed small"), "ddpm-large" that of the forward step
SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ddpm": Ancestral,
    "ddpm-large": partial(Ancestral, v=1.0),
    "ddim": DDIM,
    "plms": PLMS,
    "euler": Euler,
    "euler-a": EulerAncestral,
    "heun": Heun,
    "dpmpp-2s": DPMSolverSinglestep,
    "dpmpp-2m": DPMSolver,
    "dpmpp-3m": partial(DPMSolver, order=3),
    "dpmpp-2m-sde": DPMSolverSDE,
    "dpmpp-3m-sde": partial(DPMSolverSDE, order=3),
    "unipc": UniPC,
    "unipc-3": partial(UniPC, order=3),
}

GRIDS: dict[str, Callable[[], Grid]] = {
    "uniform": Uniform,
    "trailing": Uniform,
    "leading": Leading,
    "quadratic": Quadratic,
    "karras": Karras,
    "logsnr": LogSNR,
    "published": PublishedUniform,
    "published-quadratic": PublishedQuadratic,
}


def sampler_named(name: str, *, grid: str | None = None, eta: float | None = None) -> Sampler:
    """The sampler of a short name, on a grid of a short name and with this much noise.

    name: of `SAMPLERS`.  grid: of `GRIDS`; the sampler's own by default.
    eta: 0 to 1, of a sampler that has one; its own by default.
    Raises ValueError that names the nearest name, and for an eta out of range or without use.
    """
    require_known("sampler", name, SAMPLERS)
    sampler = SAMPLERS[name]()
    if grid is not None:
        require_known("grid", grid, GRIDS)
        sampler = replace(sampler, grid=GRIDS[grid]())
    if eta is None:
        return sampler
    taking = [known for known, make in SAMPLERS.items() if "eta" in signature(make).parameters]
    if name not in taking:
        raise ValueError(f"eta: {eta}; {name} has none, expected one of {', '.join(taking)}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: {eta}; expected 0 to 1")
    return replace(sampler, eta=eta)  # type: ignore[call-arg]
