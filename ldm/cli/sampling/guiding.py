"""The flags of guidance, and the denoiser that they ask for (`ldm.guidance`)."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ldm.cli.sampling.sizes import latent_size
from ldm.config import ConfigError
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.schedule import Schedule
from ldm.guidance.autoguidance import Autoguided, Told
from ldm.guidance.classifier_free import ClassifierFree
from ldm.guidance.contrast import Contrast
from ldm.guidance.correction import Thresholded
from ldm.guidance.interval import Interval
from ldm.guidance.projected import Projected
from ldm.guidance.rescaled import Rescaled
from ldm.guidance.tiled import Tiled
from ldm.types import Conditioning

__all__ = ["GUIDANCE_FLAGS", "Guidance", "add_guidance", "guidance_of"]

GUIDANCE_FLAGS = (
    "scale",
    "interval",
    "rescale",
    "project",
    "threshold",
    "tile",
    "weak",
    "weak_scale",
    "weak_sha256",
)
_OVERLAP = 4  # a window and its neighbour share a quarter of it


def add_guidance(parser: argparse.ArgumentParser) -> None:
    """Add the flags; docs/guidance.md says what each does."""
    add = parser.add_argument_group("what guides it").add_argument
    add("--scale", type=float, default=1.0, help="of classifier-free guidance; 1 is none")
    add(
        "--interval",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="guide at these fractions of time only, 0 for data and 1 for noise",
    )
    add("--rescale", type=float, metavar="PHI", help="0 to 1: take back the contrast it adds")
    add("--project", type=float, metavar="NORM", help="adaptive projected guidance, of this norm")
    add("--weak", metavar="RUN", help="autoguidance: away from this less trained model")
    add("--weak-scale", type=float, default=2.0, metavar="SCALE", help="of autoguidance")
    add("--threshold", type=float, metavar="SHARE", help="dynamic thresholding: 0.995, in pixels")
    add("--tile", type=int, nargs=2, metavar=("H", "W"), help="denoise in windows of these pixels")
    parser.set_defaults(weak_model=None, weak_sha256=None)  # of --weak, once it is loaded


@dataclass(frozen=True)
class Guidance:
    """Guidance put together from the inside out, as docs/guidance.md orders it.

    tile: window in latent cells.  weak: a less trained model's denoiser, followed away from with
    weak_scale.  weak_told, weak_null: its own condition, and what "none" is to it.  gradient: a
    wrapper that guides by a gradient.  The others: see `ldm.guidance`.
    None leaves each out.
    """

    schedule: Schedule
    scale: float = 1.0
    interval: tuple[float, float] | None = None
    rescale: float | None = None
    project: float | None = None
    threshold: float | None = None
    tile: tuple[int, int] | None = None
    weak: Denoiser | None = None
    weak_scale: float = 2.0
    weak_told: Conditioning | None = None
    weak_null: Conditioning | None = None
    gradient: Callable[[Denoiser], Denoiser] | None = None

    def __call__(self, denoiser: Denoiser, null: Conditioning | None) -> Denoiser:
        """The denoiser that is followed.  null: what "no condition" is; None without any."""
        plain = self._tiled(denoiser)
        guided = self._scaled(plain, null)
        if self.weak is not None:
            weak = Told(self._scaled(self._tiled(self.weak), self.weak_null), self.weak_told)
            guided = Autoguided(guided, weak, self.weak_scale)
        if self.project is not None and isinstance(guided, Contrast):
            guided = Projected(guided, self.schedule, threshold=self.project)
        if self.rescale is not None and isinstance(guided, Contrast | Projected):
            guided = Rescaled(guided, self.schedule, phi=self.rescale)
        if self.interval is not None:
            guided = Interval(guided, plain, self.schedule, *self.interval)
        if self.gradient is not None:
            guided = self.gradient(guided)
        if self.threshold is not None:
            guided = Thresholded(guided, self.schedule, percentile=self.threshold)
        return guided

    def _scaled(self, denoiser: Denoiser, null: Conditioning | None) -> Denoiser:
        if null is None or self.scale == 1:
            return denoiser
        return ClassifierFree(denoiser, self.scale, null)

    def _tiled(self, denoiser: Denoiser) -> Denoiser:
        if self.tile is None:
            return denoiser
        height, width = self.tile
        stride = (max(1, height - height // _OVERLAP), max(1, width - width // _OVERLAP))
        return Tiled(denoiser, (height, width), stride)


def guidance_of(args: argparse.Namespace, model: Any) -> Guidance | None:
    """The guidance of the flags, None where classifier-free guidance at `--scale` says it all.

    Raises ConfigError for numbers out of range, and for flags that would change nothing.
    """
    is_guided = args.scale != 1 or args.weak_model is not None
    for name in ("interval", "rescale", "project"):
        if getattr(args, name) is not None and not is_guided:
            raise ConfigError(f"--{name}: there is no guidance to change; give --scale or --weak")
    if args.threshold is not None and not model.clip_denoised:
        raise ConfigError("--threshold: is for pixels in [-1, 1], this model draws latents")
    guidance = Guidance(
        schedule=model.schedule,
        scale=args.scale,
        interval=None if args.interval is None else tuple(args.interval),
        rescale=args.rescale,
        project=args.project,
        threshold=args.threshold,
        tile=latent_size("tile", args.tile, model),
        weak=None if args.weak_model is None else args.weak_model.denoiser,
        weak_scale=args.weak_scale,
    )
    if guidance == Guidance(model.schedule, scale=args.scale):
        return None
    _require_ranges(guidance, model.denoiser)
    return guidance


def _require_ranges(guidance: Guidance, denoiser: Denoiser) -> None:
    """Raise ConfigError for what the classes of `ldm.guidance` refuse, before anything is drawn."""
    for name in ("interval", "rescale", "project", "threshold"):
        if getattr(guidance, name) is not None:
            alone = Guidance(guidance.schedule, scale=2.0)
            try:
                replace(alone, **{name: getattr(guidance, name)})(denoiser, Conditioning())
            except ValueError as error:
                raise ConfigError(f"--{name}: {error}") from error
