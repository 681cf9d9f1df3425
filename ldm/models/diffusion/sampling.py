"""Drawing with a diffusion model: from seeds and a condition to images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.conditioning.encodings import Encodings
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.draws import KeyedDraws, normal_like
from ldm.guidance.classifier_free import ClassifierFree
from ldm.guidance.correction import Clipped
from ldm.samplers.base import Callback, Sampler
from ldm.samplers.known_region import KnownRegion
from ldm.types import Conditioning

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import DDPM

__all__ = ["Known", "SampleOptions", "Start", "Weights", "sample"]

Batch = Mapping[str, Any]
Weights = Literal["ema", "raw"]

# (denoiser, what "no condition" is, if the model knows) -> the denoiser that is followed instead
Guide = Callable[[Denoiser, Conditioning | None], Denoiser]


@dataclass(frozen=True)
class Start:
    """Images to begin from in place of noise (SDEdit, arXiv:2108.01073).

    images: (B, C, H, W) in [-1, 1].
    strength: share of the steps that are taken, in (0, 1]; the noise they are given is that of the
        first of these. 1 keeps next to nothing of the images.
    """

    images: Tensor
    strength: float

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength is {self.strength}, expected more than 0, at most 1")

    def node(self, steps: int) -> int:
        """The node of a grid of so many steps that is begun at; at least one step is taken."""
        return steps - max(1, round(self.strength * steps))


@dataclass(frozen=True)
class Known:
    """Images of which a part stays as it is, while the rest is drawn to go with it.

    images: (B, C, H, W) in [-1, 1].  mask: (B, 1, H, W), 1 where a pixel is known, 0 where it is
    drawn. A latent cell counts as known where all of its pixels are.
    """

    images: Tensor
    mask: Tensor

    def cells(self, size: Sequence[int]) -> Tensor:
        """The mask in latent cells, (B, 1, *size)."""
        return 1 - F.adaptive_max_pool2d(1 - self.mask, tuple(size))


class SampleOptions(TypedDict, total=False):
    """How images are drawn.

    steps: of the sampler (50).  sampler: the model's own by default.
    scale: of classifier-free guidance; 1 (default) is the condition alone. A number or (B,).
    negative: entries to guide away from instead of the null condition.
    guide: makes the denoiser that is followed, in place of classifier-free guidance at `scale`.
    size: height and width of what is diffused, in its cells; `image_size` by default, and that of
        the images where there are any.
    weights: averaged ("ema", default) or as trained ("raw").
    start, known: images to begin from, or to keep a part of.
    callback: see `Sampler.sample`.  decode_batch: images decoded together; all by default.
    encodings: of captions, kept between calls whose weights and precision are the same.
    """

    steps: int
    scale: float | Tensor
    negative: Batch | None
    guide: Guide | None
    size: tuple[int, int] | None
    weights: Weights
    sampler: Sampler | None
    start: Start | None
    known: Known | None
    callback: Callback | None
    decode_batch: int | None
    encodings: Encodings | None


@torch.no_grad()
def sample(
    self: DDPM, seeds: Sequence[int], batch: Batch | None = None, **options: Unpack[SampleOptions]
) -> Tensor:
    """Images (B, C, H, W) in [-1, 1], one per seed; each depends on its own seed alone.

    batch: entries that the conditioner reads, B of each; None for an unconditional model.
    """
    self.conditioner.prepare()
    options = {**options, "encodings": options.get("encodings") or Encodings()}
    sampler, steps = options.get("sampler") or self.sampler, options.get("steps", 50)
    draws = KeyedDraws(seeds, seed=0)
    cond = None
    if batch is not None:
        cond = self.conditioner(batch, encodings=options["encodings"])
    denoiser = _denoiser(self, draws, batch, cond, options)
    if (known := options.get("known")) is not None:
        z = self.encode(known.images.to(self.device))
        height, width = z.shape[2:]
        mask = known.cells((height, width)).to(z)
        denoiser = KnownRegion(denoiser, self.schedule, z, mask, draws)
        options = {**options, "size": (height, width)}
    x, node = _first_state(self, draws, sampler, options)
    z = sampler.sample(
        denoiser,
        x,
        schedule=self.schedule,
        steps=steps,
        cond=cond,
        draws=draws,
        callback=options.get("callback"),
        start=node,
    )
    return _decoded(self, z, options.get("decode_batch"))


def _denoiser(
    model: DDPM,
    draws: KeyedDraws,
    batch: Batch | None,
    cond: Conditioning | None,
    options: SampleOptions,
) -> Denoiser:
    """The model's denoiser and what steers it."""
    net = model.ema_denoiser if options.get("weights", "ema") == "ema" else model.denoiser
    denoiser: Denoiser = model.told(net, draws)
    scale, guide = options.get("scale", 1.0), options.get("guide")
    is_guided = isinstance(scale, Tensor) or scale != 1
    null = None
    if batch is not None and cond is not None and (is_guided or guide is not None):
        negative, encodings = options.get("negative"), options.get("encodings")
        null = (
            model.conditioner.null(batch, encodings=encodings)
            if negative is None
            else model.conditioner(negative, encodings=encodings)
        )
    if guide is not None:
        denoiser = guide(denoiser, null)
    elif is_guided and null is not None:
        denoiser = ClassifierFree(denoiser, scale, null)
    return Clipped(denoiser, model.schedule) if model.clip_denoised else denoiser


def _first_state(
    model: DDPM, draws: KeyedDraws, sampler: Sampler, options: SampleOptions
) -> tuple[Tensor, int]:
    """The state (B, C, h, w) that sampling begins from, and the node of the grid it belongs to."""
    start = options.get("start")
    if start is None:
        size = options.get("size") or model.latent_size
        noise = draws.normal((model.channels, *size), "x_T").to(model.device)
        return noise * model.schedule.prior_std, 0
    z = model.encode(start.images.to(model.device))
    times = sampler.times(model.schedule, options.get("steps", 50))
    node = start.node(len(times) - 1)
    t = model.schedule.tensor_of(times[node : node + 1], z).expand(len(z))
    return model.schedule.noised(z, normal_like(draws, z, "x_T"), t), node


def _decoded(model: DDPM, z: Tensor, size: int | None) -> Tensor:
    """Images of latents, so many at a time."""
    if size is None or size >= len(z):
        return model.decode(z)
    return torch.cat([model.decode(part) for part in torch.split(z, size)])
