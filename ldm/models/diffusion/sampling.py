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
from ldm.diffusion.draws import KeyedDraws
from ldm.diffusion.interpolation import slerp
from ldm.guidance.classifier_free import ClassifierFree
from ldm.guidance.correction import Clipped
from ldm.samplers.base import Callback, Sampler
from ldm.samplers.inversion import DDIMInversion
from ldm.samplers.known_region import KnownRegion, continued
from ldm.tensor import sent_to
from ldm.types import Conditioning

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import DDPM

__all__ = ["Inverted", "Known", "SampleOptions", "Start", "Weights", "sample", "starting_noise"]

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
class Inverted:
    """The noise that images are drawn from, and a share of it replaced: variations of them.

    DDIM's steps up the noise levels of the sampler's grid, without guidance
    (`ldm.samplers.inversion`), lead from an image to its noise; a deterministic sampler leads back,
    as far as steps are small and nothing guides it.

    images: (B, C, H, W) in [-1, 1].
    strength: share of the noise that is replaced by that of the seed, by `slerp`: 0 draws the
        images again, 1 begins from the seed alone.
    batch: entries that describe the images; None for those that are drawn.
    guide: makes the denoiser that is inverted, such as one in windows; None for the model's own.
    """

    images: Tensor
    strength: float
    batch: Batch | None = None
    guide: Guide | None = None

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength is {self.strength}, expected 0 to 1")


@dataclass(frozen=True)
class Known:
    """Images of which a part stays as it is, while the rest is drawn to go with it.

    images: (B, C, H, W) in [-1, 1].  mask: (B, 1, H, W), 1 where a pixel is known, 0 where it is
    drawn. A latent cell counts as known where all of its pixels are. What the images show where
    they are not known has no influence.
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
    noise: (B, C, h, w), what is drawn from in place of the seeds' own noise, of unit variance
        (`starting_noise` has theirs).
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
    start: Start | Inverted | None
    noise: Tensor | None
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
        z = self.encode(continued(known.images, known.mask).to(self.device))
        height, width = z.shape[2:]
        mask = known.cells((height, width)).to(z)
        denoiser = KnownRegion(denoiser, self.schedule, z, mask, draws)
        options = {**options, "size": (height, width)}
    x, node = _first_state(self, draws, sampler, cond, options)
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


def starting_noise(
    model: DDPM, seeds: Sequence[int | str], size: Sequence[int] | None = None
) -> Tensor:
    """The noise that `sample` draws from with these seeds: (B, C, h, w), of unit variance.

    size: height and width in cells of what is diffused; `image_size` by default.
    """
    shape = (model.channels, *(size or model.latent_size))
    return sent_to(KeyedDraws(seeds, seed=0).normal(shape, "x_T"), model.device)


def _denoiser(
    model: DDPM,
    draws: KeyedDraws,
    batch: Batch | None,
    cond: Conditioning | None,
    options: SampleOptions,
) -> Denoiser:
    """The model's denoiser and what steers it."""
    denoiser = _own(model, draws, options)
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
    return _clipped(model, denoiser)


def _own(model: DDPM, draws: KeyedDraws, options: SampleOptions) -> Denoiser:
    """The denoiser of the weights that are asked for."""
    net = model.ema_denoiser if options.get("weights", "ema") == "ema" else model.denoiser
    return model.told(net, draws)


def _clipped(model: DDPM, denoiser: Denoiser) -> Denoiser:
    return Clipped(denoiser, model.schedule) if model.clip_denoised else denoiser


def _first_state(
    model: DDPM,
    draws: KeyedDraws,
    sampler: Sampler,
    cond: Conditioning | None,
    options: SampleOptions,
) -> tuple[Tensor, int]:
    """The state (B, C, h, w) that sampling begins from, and the node of the grid it belongs to."""
    start, schedule = options.get("start"), model.schedule
    if start is None:
        return _noise(model, draws, options.get("size"), options) * schedule.prior_std, 0
    z, steps = model.encode(start.images.to(model.device)), options.get("steps", 50)
    noise = _noise(model, draws, z.shape[2:], options)
    if isinstance(start, Start):
        times = sampler.times(schedule, steps)
        node = start.node(len(times) - 1)
        t = schedule.tensor_of(times[node : node + 1], z).expand(len(z))
        return schedule.noised(z, noise.to(z), t), node
    noise = noise * schedule.prior_std
    if start.strength == 1:
        return noise, 0
    if start.batch is not None:
        cond = model.conditioner(start.batch, encodings=options.get("encodings"))
    denoiser = _own(model, draws, options)
    if start.guide is not None:
        denoiser = start.guide(denoiser, None)
    inverted = DDIMInversion(sampler.grid).sample(
        _clipped(model, denoiser),
        z.to(torch.promote_types(z.dtype, noise.dtype)),  # states are no matrix products
        schedule=schedule,
        steps=steps,
        cond=cond,
    )
    return slerp(inverted, noise, start.strength), 0


def _noise(
    model: DDPM, draws: KeyedDraws, size: Sequence[int] | None, options: SampleOptions
) -> Tensor:
    """The noise (B, C, h, w) of unit variance that is drawn from."""
    shape = (len(draws.keys), model.channels, *(size or model.latent_size))
    noise = options.get("noise")
    if noise is None:
        return starting_noise(model, draws.keys, shape[2:])
    if tuple(noise.shape) != shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}, expected {shape}")
    return sent_to(noise, model.device)


def _decoded(model: DDPM, z: Tensor, size: int | None) -> Tensor:
    """Images of latents, so many at a time."""
    if size is None or size >= len(z):
        return model.decode(z)
    return torch.cat([model.decode(part) for part in torch.split(z, size)])
