"""Cures of a codebook of which few codes are used."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.hashing import hash64
from ldm.nets.precision import without_autocast
from ldm.nets.quantizer_base import nearest_codes
from ldm.ranges import Positive, Weight
from ldm.ranks import rank, sum_over_ranks, world_size
from ldm.tensor import sent_to

__all__ = [
    "KMeansInit",
    "Restart",
    "gathered_sample",
    "k_means",
    "step_generator",
    "sums_by_code",
]


@dataclass(frozen=True)
class KMeansInit:
    """The codebook starts at the centres of the first training latents, by k-means.

    latents_per_code: latents of all ranks that are collected, over as many steps as it takes,
    before k-means replaces the codebook; the steps until then have the one it was made with.
    iterations: of Lloyd's algorithm.
    """

    latents_per_code: Positive = 8
    iterations: Positive = 10


@dataclass(frozen=True)
class Restart:
    """Dead codes are replaced by latents of the current batches, those far from their codes first.

    Latents are drawn in proportion to the squared distance to their code, as k-means++ draws its
    start: in the mean codes then lie as dense as least squares wants them, and latents that are all
    the same, such as those of a blank background, take one code instead of many.

    threshold: a code is dead when its moving usage is below this; 1 is the mean of all codes. A
    replaced code starts at 1.
    memory: how far back the moving usage looks, in latents per code of all ranks, whatever the
    batch. A code that is never used is dead after memory ln(1 / threshold) of them, 23 by default.
    Raises ValueError for a threshold of 1 or more: every code would be dead.
    """

    threshold: Weight = 0.1
    memory: Positive = 10

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold={self.threshold}: expected at least 0 and less than 1")

    @torch.no_grad()
    def dead(self, usage: Tensor, counts: Tensor) -> Tensor:
        """Whether each code is dead, (K,), now that it was nearest to as many latents.

        counts: (K,) of this step, on all ranks.  usage: (K,) moving usage, which is updated.
        """
        per_code = counts.sum() / len(counts)
        # the mean of relative counts is 1; a step without latents changes nothing
        relative = counts / per_code.clamp_min(1 / len(counts))
        usage.lerp_(relative, -torch.expm1(-per_code / self.memory))
        dead = usage < self.threshold
        usage.masked_fill_(dead, 1.0)
        return dead


def sums_by_code(z: Tensor, indices: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """How many vectors each code has, (K,), and their sums, (K, d).

    z: (N, d).  indices: (N,).  Deterministic on a GPU as well.
    """
    counts = z.new_zeros(num_codes)
    counts.index_add_(0, indices, torch.ones_like(z[:, 0]))  # whole numbers: in any order
    # accumulating index_put_ sorts on a GPU, index_add_ adds in the order of chance
    sums = z.new_zeros(num_codes, z.shape[1])
    return counts, sums.index_put_((indices,), z, accumulate=True)


def step_generator(seed: int, step: int) -> torch.Generator:
    """What the cures draw from in an optimizer step: a CPU generator of each rank's own.

    So a codebook does not depend on what the process drew before, only on which latents each rank
    has to offer.
    """
    return torch.Generator().manual_seed(hash64(repr((seed, step, rank())).encode()) >> 1)


def gathered_sample(
    latents: Tensor, count: int, *, generator: torch.Generator, weights: Tensor | None = None
) -> Tensor:
    """Random latents of all ranks, the same on each: (N, d) to (count, d).

    Each row comes from the rank whose turn it is, drawn one after the other in proportion to
    `weights` (N,), by default all alike. None is repeated before all of its rank were drawn. Every
    rank calls this.
    """
    size, first = world_size(), rank()
    own = len(range(first, count, size))
    # a race: the first of exponential clocks of these rates
    time = -_uniform(len(latents), generator, latents.device).log()
    order = (time if weights is None else time / weights).argsort(stable=True)
    rows = order.repeat(-(-own // len(order)))[:own]
    sample = latents.new_zeros(count, latents.shape[1])
    sample[first::size] = latents[rows]
    return sum_over_ranks(sample)


@torch.no_grad()
def k_means(
    latents: Tensor,
    num_codes: int,
    *,
    generator: torch.Generator,
    iterations: int,
    on_sphere: bool = False,
) -> Tensor:
    """Centres of `num_codes` clusters: (N, d) to (K, d), float32.

    Lloyd's algorithm from a start by k-means++ (Arthur and Vassilvitskii 2007): each next centre is
    a latent drawn in proportion to the squared distance to the nearest so far. A centre that loses
    all its latents stays. Draws from the generator.
    on_sphere: centres are scaled to unit length, as the latents are.
    """
    latents = latents.float()
    with without_autocast(latents):
        centres = _spread(latents, num_codes, generator)
        for _ in range(iterations):
            counts, sums = sums_by_code(latents, nearest_codes(latents, centres), num_codes)
            means = sums / counts.clamp_min(1)[:, None]
            if on_sphere:
                means = F.normalize(means, dim=1)
            centres = torch.where(counts[:, None] > 0, means, centres)
    return centres


def _spread(latents: Tensor, num_codes: int, generator: torch.Generator) -> Tensor:
    """K latents far from each other, the start of k-means++."""
    uniform = _uniform(num_codes, generator, latents.device)
    rows = torch.empty(num_codes, device=latents.device, dtype=torch.int64)
    distance = latents.new_ones(len(latents), dtype=torch.float64)
    for number in range(num_codes):
        cumulative = distance.cumsum(0)
        # where fewer distinct latents than codes exist, all distances are 0 and the last repeats
        row = torch.searchsorted(cumulative, uniform[number] * cumulative[-1], right=True)
        row = row.clamp(max=len(latents) - 1).reshape(1)
        rows[number : number + 1] = row
        square = (latents - latents.index_select(0, row)).square().sum(dim=1).double()
        distance = square if number == 0 else torch.minimum(distance, square)
    return latents[rows]


def _uniform(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Numbers in [0, 1), float64, the same on any device, which is not waited for."""
    return sent_to(torch.rand(count, generator=generator, dtype=torch.float64), device)
