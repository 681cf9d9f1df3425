"""Denoisers: from x_t to what is believed of x0 and eps.

A `Denoiser` is the only thing a sampler sees. `NetDenoiser` makes one of a network; guidance,
inpainting, clipping and tiling wrap one in another (`ldm.guidance`, `ldm.samplers.known_region`).
Denoisers are plain callables, not modules: wrapping adds no key to a state dict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ldm.diffusion.draws import Draws, normal_like
from ldm.diffusion.parameterization import check_parameterization, to_prediction
from ldm.diffusion.schedule import Schedule
from ldm.spelling import require_known
from ldm.tensor import expand_to
from ldm.types import Conditioning, Prediction

__all__ = ["CONDITIONING_KEYS", "Denoiser", "DiffusionWrapper", "NetDenoiser", "NoisedCondition"]


class Denoiser(Protocol):
    """A belief about data and noise, given a noisy x_t."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Prediction:
        """Prediction (x0, eps), both (B, C, H, W), for x_t (B, C, H, W) at times t (B,)."""
        ...


# published conditioning_key -> slots of the condition that the network takes
CONDITIONING_KEYS: dict[str | None, tuple[str, ...]] = {
    None: (),
    "concat": ("concat",),
    "crossattn": ("crossattn",),
    "hybrid": ("concat", "crossattn"),
    "adm": ("vector",),
    "hybrid-adm": ("concat", "crossattn", "vector"),
    "crossattn-adm": ("crossattn", "vector"),
    "concat-adm": ("concat", "vector"),
}


class DiffusionWrapper(nn.Module):
    """A network and the slots of the condition that it takes.

    diffusion_model: net(x, timesteps, context=None, y=None) -> (B, C_out, H, W); the attribute's
    name is part of the published state-dict keys.
    conditioning_key: one of `CONDITIONING_KEYS`. "concat" joins channels to x (x first),
    "crossattn" is the context (B, N, D), "adm" the class labels (B,) or vectors y.
    """

    def __init__(self, diffusion_model: nn.Module, conditioning_key: str | None = None) -> None:
        """ValueError names the nearest conditioning key when one is misspelt."""
        super().__init__()
        if conditioning_key is not None:
            require_known("conditioning_key", conditioning_key, filter(None, CONDITIONING_KEYS))
        self.diffusion_model = diffusion_model
        self.conditioning_key = conditioning_key
        self.is_replayed = False  # whether the next call overwrites what this one returned
        self.slots = CONDITIONING_KEYS[conditioning_key]

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning | None = None) -> Tensor:
        """Raw output of the network, (B, C_out, H, W).

        x: (B, C, H, W).  t: (B,) on the scale of the network's time embedding.
        Raises ValueError unless the condition fills exactly the slots of the conditioning key.
        """
        cond = cond or _NOTHING
        self._check(cond)
        if cond.concat is not None:
            x = torch.cat([x, cond.concat], dim=1)
        arguments = {}
        if cond.crossattn is not None:
            arguments["context"] = cond.crossattn
        if cond.vector is not None:
            arguments["y"] = cond.vector
        out: Tensor = self.diffusion_model(x, t, **arguments)
        return out.clone() if self.is_replayed else out

    def compile_network(self, *, as_graphs: bool = False) -> None:
        """Compile the network in place; keys of the state dict stay. Each shape is one compilation.

        as_graphs: its kernels are recorded as CUDA graphs, one per shape, and replayed: a call then
            takes a single launch. The memory of all graphs stays taken.
        """
        mode = "reduce-overhead" if as_graphs else None
        self.diffusion_model.compile(dynamic=False, mode=mode)
        self.is_replayed = as_graphs

    def _check(self, cond: Conditioning) -> None:
        for name in ("concat", "crossattn", "vector"):
            if (getattr(cond, name) is not None) != (name in self.slots):
                raise ValueError(
                    f"conditioning_key {self.conditioning_key!r} takes the slots "
                    f"{list(self.slots)}, the condition fills {list(cond.slots())}"
                )


_NOTHING = Conditioning()


@dataclass(frozen=True)
class NetDenoiser:
    """A network as a denoiser.

    net: (x, t, cond) -> output, usually a `DiffusionWrapper`.
    parameterization: what the output means, a name of `ldm.diffusion.parameterization`.
    """

    net: nn.Module
    schedule: Schedule
    parameterization: str = "eps"

    def __post_init__(self) -> None:
        """Refuse an unknown parameterization, and eps where the schedule reaches pure noise."""
        check_parameterization(self.parameterization)
        if self.parameterization == "eps" and self.schedule.ends_in_pure_noise:
            raise ValueError(
                f"{type(self.schedule).__name__} ends in pure noise, from which eps says nothing "
                "about x0: predict v, x0 or flow"
            )

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Prediction:
        """Prediction (x0, eps), both (B, C, H, W), for x_t (B, C, H, W) at times t (B,)."""
        alpha, sigma = self.schedule.coefficients(t)
        return to_prediction(self.parameterization, self.output(x_t, t, cond), x_t, alpha, sigma)

    def output(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Tensor:
        """Raw output of the network, (B, C, H, W): what the training objective compares."""
        scale = self.schedule.net_scale(t)
        x = x_t if scale is None else x_t * expand_to(scale, x_t)
        out: Tensor = self.net(x, self.schedule.net_time(t), cond)
        return out


@dataclass(frozen=True, kw_only=True)
class NoisedCondition(NetDenoiser):
    """A network that sees its condition with noise in it, more of it the later the time.

    What `num_timesteps_cond` of the 2022 release trains: a network that forgives the flaws of a
    condition which is itself the result of a model. Integer labels stay as they are.

    times: (T,) int64, the time at which the condition is noised for each time of the data
        (`ldm.diffusion.times.conditioning_times`).
    draws: stream "condition <slot>", one noise for all times.
    """

    times: Tensor
    draws: Draws

    def output(self, x_t: Tensor, t: Tensor, cond: Conditioning | None) -> Tensor:
        """Raw output of the network, (B, C, H, W), for the condition with noise."""
        return super().output(x_t, t, None if cond is None else self._noised(cond, t))

    def _noised(self, cond: Conditioning, t: Tensor) -> Conditioning:
        t = self.times[t.round().long()]  # a solver's times may lie between integers
        slots = cond.slots()
        for name, value in slots.items():
            if value.is_floating_point():
                eps = normal_like(self.draws, value, f"condition {name}")
                # guidance asks for both of its halves at once: they get the same noise
                eps = eps.repeat(len(value) // len(eps), *[1] * (value.ndim - 1))
                slots[name] = self.schedule.noised(value, eps, t)
        return Conditioning(**slots)
