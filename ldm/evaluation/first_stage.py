"""How well a first stage reconstructs images, judged as a file would hold them.

Of uint8 images, a reconstruction is rounded to uint8 before anything is measured; of float32 images
in [-1, 1], it is clipped to that.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldm.autoencoders.base import first_latent
from ldm.autoencoders.padded import Padded
from ldm.autoencoders.posterior import DiagonalGaussian
from ldm.config import ConfigError
from ldm.diffusion.draws import KeyedDraws
from ldm.evaluation.extractor import Extractor
from ldm.evaluation.frechet import FeatureMoments, classifier_score, frechet_distance
from ldm.fidelity import DETAIL_WINDOW, SSIM_WINDOW, Sharpness, psnr, ssim
from ldm.losses.perceptual import LPIPS, LpipsChannels
from ldm.tensor import to_image_tensor, to_uint8

__all__ = ["Judge", "Judged", "diffused_latents", "judged", "lpips_of", "reconstruct"]

_SCORE_PARTS = 10


def diffused_latents(first_stage: Any, images: Tensor, keys: Sequence[int | str]) -> Tensor:
    """Unscaled latents (B, c, h, w) of images (B, C, H, W) in [-1, 1], as diffusion meets them.

    Samples of the posterior for KL, each drawn by its key; before quantization for VQ.
    """
    return _latent(getattr(first_stage, "encode_to_prequant", first_stage.encode)(images), keys, 0)


def _latent(encoding: Any, keys: Sequence[int | str] | None, seed: int) -> Tensor:
    """One latent (B, c, h, w): a sample by (seed, key), the mode without keys, or what VQ gives."""
    if isinstance(encoding, tuple):  # of a VQ model: quantized latents, and what else is known
        encoding = encoding[0]
    if keys is None or not isinstance(encoding, DiagonalGaussian):
        return first_latent(encoding)
    draws = KeyedDraws(keys, seed, device=encoding.mean.device)
    return first_latent(encoding, draws.normal(encoding.mean.shape[1:], "posterior"))


@torch.no_grad()
def reconstruct(
    first_stage: Any, images: Tensor, keys: Sequence[int | str] | None = None, *, seed: int = 0
) -> tuple[Tensor, tuple[int, int, int]]:
    """Reconstructions of images (B, H, W, C), and the latents' (c, h, w).

    Both are uint8, or both float32 in [-1, 1].
    Images of any size are padded by reflection to multiples of the downsampling factor, and what
    was added is cut off again.
    keys: one per image, for samples of a KL posterior that depend on (seed, key) alone; without,
        its mode.

    Raises ConfigError for keys where there is no posterior.
    """
    stage = Padded(first_stage)
    encoding = stage.encode(to_image_tensor(images))
    if keys is not None and not isinstance(encoding, DiagonalGaussian):
        kind = type(first_stage).__name__
        raise ConfigError(f"--sample: {kind} gives one latent of an image, not a posterior")
    z = _latent(encoding, keys, seed)
    made = stage.decode(z, (images.shape[1], images.shape[2]))
    return _as_stored(made, images.dtype), (z.shape[1], z.shape[2], z.shape[3])


def _as_stored(made: Tensor, dtype: torch.dtype) -> Tensor:
    """Images (B, C, H, W) as (B, H, W, C) of a type, clipped."""
    if dtype == torch.uint8:
        return to_uint8(made)
    return made.float().clamp(-1, 1).permute(0, 2, 3, 1).contiguous()


@dataclass(frozen=True)
class Judged:
    """One image (H, W, C), its reconstruction, the latent's (c, h, w) and its measures."""

    name: str
    image: Tensor
    reconstruction: Tensor
    latent: tuple[int, int, int]
    measures: dict[str, float]


def judged(
    first_stage: Any,
    batches: Iterable[tuple[Sequence[str], Tensor]],
    judge: Judge,
    *,
    device: torch.device,
    seed: int | None = None,
) -> Iterator[Judged]:
    """Reconstruct and compare images in batches: names, and (B, H, W, C) of one size.

    seed: of samples of the posterior, which depend on it and the name; None for its mode.

    Raises ConfigError for a seed where there is no posterior.
    """
    for names, images in batches:
        keys = None if seed is None else list(names)
        made, latent = reconstruct(first_stage, images.to(device), keys, seed=seed or 0)
        measures = judge.compare(images.to(device), made)
        for row, name in enumerate(names):
            yield Judged(name, images[row].cpu(), made[row].cpu(), latent, measures[row])


class Judge:
    """Measures images against their reconstructions, one by one and as two sets.

    lpips: LPIPS with its weights, or None.  extractor: of features for the Frechet distance between
    all images and all reconstructions (rFID), and of logits for the score of the latter (R-IS).
    lpips_channels: those of the images that both networks see: those that `lpips` was built with.
        The extractor knows no `each`. A network is not shown images of channels that it does not
        take.
    """

    def __init__(
        self,
        lpips: nn.Module | None = None,
        extractor: Extractor | None = None,
        *,
        lpips_channels: LpipsChannels = None,
    ) -> None:
        self.lpips, self.extractor, self.lpips_channels = lpips, extractor, lpips_channels
        self._unseen: dict[str, int] = {}  # networks' measures: channels that these do not take
        self._sharpness = Sharpness()
        self._measures: list[dict[str, float]] = []
        self._sets = (FeatureMoments(), FeatureMoments())
        self._logits: list[Tensor] = []

    def anew(self) -> Judge:
        """A judge with the same networks that has measured nothing."""
        return Judge(self.lpips, self.extractor, lpips_channels=self.lpips_channels)

    @torch.no_grad()
    def compare(self, images: Tensor, reconstructions: Tensor) -> list[dict[str, float]]:
        """Measures of each pair, both (B, H, W, C) of one type: psnr in dB, ssim, lpips.

        What an image is too small for is left out, SSIM below 11 pixels, LPIPS below 16; and LPIPS
        for numbers of channels that it does not take.
        """
        pair = to_image_tensor(images), to_image_tensor(reconstructions)
        side = min(images.shape[1:3])
        # in float32 wherever the networks ran in less
        with torch.autocast(images.device.type, enabled=False):
            columns = {"psnr": psnr(*pair)}
            if side >= SSIM_WINDOW:
                columns["ssim"] = ssim(*pair)
            is_seen = self._takes("lpips", images.shape[3])
            if self.lpips is not None and is_seen and side >= LPIPS.smallest_side:
                columns["lpips"] = self.lpips(*pair).flatten()
            if side >= DETAIL_WINDOW:
                self._sharpness.to(images.device).update(*pair)
            if self._takes("features", images.shape[3]):
                self._compare_features(*pair)
        rows = zip(*(values.tolist() for values in columns.values()), strict=True)
        measures = [dict(zip(columns, row, strict=True)) for row in rows]
        self._measures += measures
        return measures

    def _takes(self, name: Literal["lpips", "features"], channels: int) -> bool:
        """Whether a network can be shown images of so many channels; if not, it is remembered."""
        chosen = self.lpips_channels
        if chosen is None or (chosen == "each" and name == "features"):
            takes = channels in (1, 3)
        else:
            takes = chosen == "each" or max(chosen) < channels
        if not takes:
            self._unseen[name] = channels
        return takes

    def _compare_features(self, images: Tensor, reconstructions: Tensor) -> None:
        if self.extractor is None:
            return
        chosen = self.lpips_channels
        for moments, each in zip(self._sets, (images, reconstructions), strict=True):
            seen = each if chosen in (None, "each") else each[:, list(chosen)]
            planes = to_uint8(seen).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)  # grey becomes RGB
            features, logits = self.extractor(planes)
            moments.update(features)
        if logits is not None:
            self._logits.append(logits.float().cpu())

    def summary(self) -> dict[str, Any]:
        """Mean and standard deviation over images of every measure, and measures of the sets.

        `rfid` and `r_is` are those of the Inception network, `frechet_distance` and
        `classifier_score` the same of another; each says its number of images and whose features
        it is of. What could not be measured is named with the reason under `left_out`.
        """
        left_out: dict[str, str] = {}
        found: dict[str, Any] = {"images": len(self._measures)}
        for name in ("psnr", "ssim", "lpips"):
            values = [each[name] for each in self._measures if name in each]
            if values:
                found[name] = _over_images(values)
            elif name in self._unseen:
                left_out[name] = _not_taken(self._unseen[name])
            elif name == "lpips" and self.lpips is None:
                left_out[name] = "no weights were given (--lpips-weights FILE)"
            else:
                left_out[name] = "every image is too small"
        if self._sharpness.given > 0:
            found["sharpness"] = {"value": float(self._sharpness.compute())}
        else:
            left_out["sharpness"] = "every image is blank or too small"
        self._summarise_sets(found, left_out)
        return found | {"left_out": left_out}

    def _summarise_sets(self, found: dict[str, Any], left_out: dict[str, str]) -> None:
        is_inception = self.extractor is None or self.extractor.is_inception
        distance = "rfid" if is_inception else "frechet_distance"
        score = "r_is" if is_inception else "classifier_score"
        if self.extractor is None or "features" in self._unseen:
            reason = "no network was given (--inception-weights FILE or --features YAML)"
            if "features" in self._unseen:
                reason = _not_taken(self._unseen["features"])
            left_out |= {distance: reason, score: reason}
            return
        count = self._sets[0].count
        origin = {"features": self.extractor.label, "images": count}
        if count < 2:
            left_out[distance] = "needs two images or more"
        else:
            first, second = ((each.mean(), each.covariance()) for each in self._sets)
            found[distance] = {"value": frechet_distance(*first, *second), **origin}
        logits = torch.cat(self._logits) if self._logits else None
        if logits is None:
            left_out[score] = "the network gives no logits"
        elif len(logits) < _SCORE_PARTS:
            left_out[score] = f"needs {_SCORE_PARTS} images or more"
        else:
            mean, std = classifier_score(logits, _SCORE_PARTS)
            found[score] = {"value": mean, "std": std, "parts": _SCORE_PARTS, **origin}


def _not_taken(channels: int) -> str:
    return f"{channels} channels; --lpips-channels says which are red, green and blue"


def _over_images(values: Sequence[float]) -> dict[str, float | int | None]:
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": math.fsum(values) / len(values), "std": std, "images": len(values)}


def lpips_of(weights: str | Path, device: torch.device, channels: LpipsChannels = None) -> LPIPS:
    """LPIPS with the weights of a local file; ConfigError where there are none in it.

    channels: of the images that it compares, `lpips_channels` of `LPIPS`.
    """
    if not Path(weights).is_file():
        raise ConfigError(f"--lpips-weights {weights}: no such file")
    try:
        return LPIPS(weights, channels).to(device)
    except (ValueError, RuntimeError, UnpicklingError, AttributeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--lpips-weights {weights}: does not fit: {reason}") from error
