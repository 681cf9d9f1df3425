"""Equivariance regularisation, EQ-VAE (arXiv:2502.09509): transformed latents decode alike.

With some probability per step the latent z is made smaller and turned, and its decoding is
compared with the image made smaller and turned, instead of the plain reconstruction:

    D(t(z)) ~ t(x),  z ~ q(z | x).

Latents that survive this are smoother, which makes the second stage's work easier.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.ranges import Weight

__all__ = ["Equivariance", "Transform"]


@dataclass(frozen=True)
class Transform:
    """A change of size and a rotation, of latents and of their images.

    scale: of each side, in (0, 1].  turns: by 90 degrees, counter-clockwise.  factor: f, pixels per
    latent cell.
    """

    scale: float
    turns: int
    factor: int

    def of_latents(self, z: Tensor) -> Tensor:
        """(B, c, h, w) to (B, c, h', w'), with sides of a whole number of cells, at least one."""
        return self._applied(z, unit=1)

    def of_images(self, x: Tensor) -> Tensor:
        """(B, C, f h, f w) to (B, C, f h', f w')."""
        return self._applied(x, unit=self.factor)

    def side(self, cells: int) -> int:
        """Cells that are left of so many."""
        return max(1, round(self.scale * cells))

    def _applied(self, x: Tensor, unit: int) -> Tensor:
        size = [unit * self.side(side // unit) for side in x.shape[2:]]
        if size != list(x.shape[2:]):
            # in float32: bfloat16 has no such kernel on every device
            resized = F.interpolate(x.float(), size=size, mode="bicubic", antialias=True)
            x = resized.to(x.dtype)
        return torch.rot90(x, self.turns, (2, 3))


class Equivariance:
    """Draws whether, and how, the latents of a step are transformed.

    p: probability of a step with transformed latents.  scales: lowest and highest factor on the
    sides, drawn uniformly and rounded to whole latent cells; none leaves the size alone.
    rotations: also turn by 0, 90, 180 or 270 degrees.

    Raises ValueError for values that are no probability or no range, and where nothing is left to
    draw.
    """

    def __init__(
        self, p: Weight = 0.5, scales: Sequence[Weight] | None = (0.25, 1.0), rotations: bool = True
    ) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"p: {p}; expected a probability, 0 to 1")
        if scales is not None and not (len(scales) == 2 and 0 < scales[0] <= scales[1] <= 1):
            raise ValueError(
                f"scales: {list(scales)}; expected the lowest and the highest, 0 < low <= high <= 1"
            )
        if scales is None and not rotations:
            raise ValueError("rotations: false, and no scales: there is nothing to transform by")
        self.p, self.rotations = p, rotations
        self.scales = (1.0, 1.0) if scales is None else (scales[0], scales[1])

    def draw(self, seed: int, step: int, factor: int) -> Transform | None:
        """The transform of an optimizer step, a function of seed and step; None in a plain one.

        factor: f, pixels per latent cell.
        """
        numbers = random.Random(f"{seed}/{step}/equivariance")
        if numbers.random() >= self.p:
            return None
        scale, turns = numbers.uniform(*self.scales), numbers.randrange(4)
        return Transform(scale, turns if self.rotations else 0, factor)

    def smallest_side(self, side: int, factor: int) -> int:
        """Pixels of the smallest image that becomes of a side of so many."""
        return factor * Transform(self.scales[0], 0, factor).side(side // factor)
