"""What the sampling loop costs beside its network."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from ldm.benchmark.setting import Setting
from ldm.diffusion.denoiser import NetDenoiser
from ldm.diffusion.schedule import PublishedSchedule
from ldm.samplers.ddim import DDIM
from ldm.types import Conditioning

__all__ = ["loop_overhead", "peer_loop_overhead"]

_STEPS = 200


class _Empty(nn.Module):
    """A network that costs nothing: it always gives the same tensor."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.out = out

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning | None = None) -> Tensor:
        return self.out


def loop_overhead(shape: tuple[int, ...], setting: Setting, rounds: int = 15) -> float:
    """Seconds per step of DDIM with an empty network, on states (B, C, H, W)."""
    x = torch.randn(shape, device=setting.device)
    schedule = PublishedSchedule().to(setting.device)
    denoiser = NetDenoiser(_Empty(torch.randn_like(x)), schedule)
    return _per_step(
        lambda: DDIM().sample(denoiser, x, schedule=schedule, steps=_STEPS), setting, rounds
    )


def peer_loop_overhead(shape: tuple[int, ...], setting: Setting, rounds: int = 15) -> float:
    """The same with the scheduler of diffusers in the loop that its pipelines have."""
    import diffusers

    x = torch.randn(shape, device=setting.device)
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(_STEPS)
    out = torch.randn_like(x)

    @torch.no_grad()
    def sample() -> Tensor:
        state = x
        for t in scheduler.timesteps:
            state = scheduler.step(out, t, state).prev_sample
        return state

    return _per_step(sample, setting, rounds)


def _per_step(sample: Callable[[], object], setting: Setting, rounds: int) -> float:
    seconds = [setting.timed(sample).busy for _ in range(rounds + 2)]
    return median(seconds[2:]) / _STEPS
