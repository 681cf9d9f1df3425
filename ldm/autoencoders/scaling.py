"""The scale of a latent space: diffusion wants latents of unit standard deviation.

Section 4.3.2 and appendix G of the latent diffusion paper (arXiv:2112.10752): the latents of a
weakly regularised autoencoder are divided by their standard deviation before the diffusion model
sees them, so that the noise schedule meets the signal it was made for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.ranks import sum_over_ranks, world_size

__all__ = ["LatentMoments", "unit_std_scale"]


class LatentMoments:
    """Mean, standard deviation and skewness of the latents of any number of batches.

    Sums are kept per channel in float64, so that the result does not depend on how the latents
    were cut into batches or spread over ranks.
    """

    def __init__(self) -> None:
        self.count = 0  # latent cells per channel
        self._sums: Tensor | None = None  # (3, c): sums of z, z squared, z cubed

    def update(self, z: Tensor) -> None:
        """Count the latents (B, c, h, w) of one batch."""
        values = z.detach().double().transpose(0, 1).flatten(1)
        sums = torch.stack([values.pow(power).sum(dim=1) for power in (1, 2, 3)])
        self._sums = sums if self._sums is None else self._sums + sums
        self.count += values.shape[1]

    def synchronize(self) -> None:
        """Add up the counts of all ranks; without other ranks nothing happens."""
        if world_size() == 1:
            return
        sums = self._all_sums()
        packed = sum_over_ranks(torch.cat([sums.flatten(), sums.new_tensor([self.count])]))
        self._sums = packed[:-1].reshape(3, -1)
        self.count = int(packed[-1])

    def mean(self, *, per_channel: bool = False) -> Tensor:
        """Mean, float64: 0-d, or (c,) per channel."""
        total, *_, count = self._statistics(per_channel)
        return total / count

    def std(self, *, per_channel: bool = False) -> Tensor:
        """Unbiased standard deviation, float64: 0-d over all elements, or (c,) per channel."""
        total, squares, _, count = self._statistics(per_channel)
        return ((squares - total.square() / count) / (count - 1)).sqrt()

    def skew(self, *, per_channel: bool = False) -> Tensor:
        """Skewness E[(z - m)^3] / E[(z - m)^2]^(3/2), float64: 0-d, or (c,) per channel.

        0 for a symmetric distribution. From raw moments, so good to about 1e-15 (|m| / std)^3.
        """
        total, squares, cubes, count = self._statistics(per_channel)
        mean = total / count
        variance = squares / count - mean.square()
        third = cubes / count - 3 * mean * squares / count + 2 * mean.pow(3)
        return third / variance.pow(1.5)

    def scale(self, *, per_channel: bool = False) -> Tensor:
        """1 / std, the factor on latents, float32: 0-d, or (1, c, 1, 1) per channel.

        Raises ValueError when the latents do not vary, or are not all finite.
        """
        std, mean = self.std(per_channel=per_channel), self.mean(per_channel=per_channel)
        if not bool(mean.isfinite().all()):
            raise ValueError(f"latents are not finite (mean {mean.tolist()})")
        # of a constant, round-off leaves a deviation of about 1e-8 of its size; NaN is none either
        if not bool((std > 1e-6 * mean.abs()).all()):
            raise ValueError(f"latents do not vary (standard deviation {std.tolist()})")
        scale = std.reciprocal().float()
        return scale.reshape(1, -1, 1, 1) if per_channel else scale

    def _statistics(self, per_channel: bool) -> tuple[Tensor, Tensor, Tensor, int]:
        total, squares, cubes = self._all_sums()
        if per_channel:
            return total, squares, cubes, self.count
        return total.sum(), squares.sum(), cubes.sum(), self.count * len(total)

    def _all_sums(self) -> Tensor:
        if self._sums is None:
            raise ValueError("no latents were counted yet")
        return self._sums


def unit_std_scale(z: Tensor, *, per_channel: bool = False) -> Tensor:
    """Factor that gives these latents (B, c, h, w) unit standard deviation: 0-d or (1, c, 1, 1)."""
    moments = LatentMoments()
    moments.update(z)
    return moments.scale(per_channel=per_channel)
