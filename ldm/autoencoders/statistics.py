"""What is known about the latents of a first stage, and the file that keeps it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from ldm.autoencoders.scaling import LatentMoments

__all__ = ["LatentStatistics", "Moments"]


@dataclass(frozen=True)
class Moments:
    """Mean, standard deviation and skewness of numbers."""

    mean: float
    std: float
    skew: float


@dataclass(frozen=True)
class LatentStatistics:
    """Moments of unscaled latents over many images.

    checkpoint: path of the first stage's checkpoint.  sha256: of that file, so that the numbers
    are not taken for those of another.
    images: number of images.  latent: (c, h, w) of one latent.
    overall: over all elements.  channels: of each of the c channels.
    details: what else is to be remembered: data, seed, versions.
    """

    checkpoint: str
    sha256: str
    images: int
    latent: tuple[int, ...]
    overall: Moments
    channels: tuple[Moments, ...]
    details: dict[str, Any]

    @classmethod
    def of(
        cls,
        moments: LatentMoments,
        *,
        checkpoint: str | Path,
        sha256: str,
        images: int,
        latent: tuple[int, ...],
        details: dict[str, Any],
    ) -> Self:
        """Statistics of measured moments, which must have been given (c, h, w) latents."""
        each = (moments.mean, moments.std, moments.skew)
        columns = [kind(per_channel=True).tolist() for kind in each]
        return cls(
            checkpoint=str(checkpoint),
            sha256=sha256,
            images=images,
            latent=latent,
            overall=Moments(*(float(kind()) for kind in each)),
            channels=tuple(Moments(*values) for values in zip(*columns, strict=True)),
            details=details,
        )

    @property
    def scale_factor(self) -> float:
        """1 / overall standard deviation, the factor that gives latents unit deviation."""
        return 1 / self.overall.std

    def write(self, path: str | Path) -> None:
        """Write the file, JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The inverse of `write`; raises OSError, and ValueError for another kind of file."""
        try:
            plain = json.loads(Path(path).read_text(encoding="utf-8"))
            plain["latent"] = tuple(plain["latent"])
            plain["overall"] = Moments(**plain["overall"])
            plain["channels"] = tuple(Moments(**each) for each in plain["channels"])
            found = cls(**plain)
            is_usable = math.isfinite(found.overall.std) and found.overall.std > 0
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ValueError("holds no statistics of latents (scripts/latent_stats.py)") from error
        if not is_usable:
            raise ValueError(f"overall.std: {found.overall.std}; expected more than 0")
        return found
