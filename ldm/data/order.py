"""Which samples a step sees: a function of seed, epoch and step, and of nothing else.

The samples of step k are the k-th stretch of one permutation of the whole set, whatever the number
of processes; each process takes its part of the stretch. So a run can be resumed at any step, on
any number of processes, and sees what it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from torch.utils.data import DistributedSampler

__all__ = ["EpochSampler", "permutation"]


def permutation(size: int, seed: int, epoch: int) -> list[int]:
    """The numbers 0 to size - 1 in the order of an epoch."""
    order: list[int] = np.random.default_rng([seed, epoch]).permutation(size).tolist()
    return order


class EpochSampler(DistributedSampler[int]):
    """One process's part of each epoch, batch by batch.

    size: samples in the set.  batch_size: samples of one process in one batch; a global batch has
        batch_size * world_size.
    rank, world_size: of this process; it takes every world_size-th sample, from the rank-th on.
    accumulate: batches to one optimizer step.
    shuffle: a new permutation each epoch; otherwise every epoch is epoch 0, in order.
    drop_last: leave out what does not fill a whole optimizer step (in training), going round a set
        that is smaller than one; otherwise every sample is taken exactly once, and the numbers of
        the ranks may differ by one.

    Iterating gives keys, (epoch * rounds + round) * size + index, so that whoever reads a sample
    knows the epoch, too. There is one round in an epoch unless the set is smaller than a step.

    A `DistributedSampler` only in name: Lightning leaves such a sampler in its place.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        shuffle: bool = True,
        drop_last: bool = True,
        seed: int = 23,
    ) -> None:
        samples = cast(Any, range(size))  # of a data set it needs the length alone
        super().__init__(samples, world_size, rank, shuffle, seed, drop_last)
        self.size, self.batch_size, self.world_size = size, batch_size, world_size
        step = batch_size * world_size * accumulate
        # samples of all processes in an epoch
        self._taken = max(1, size // step) * step if drop_last else size
        self.rounds = -(-self._taken // size)
        self._start = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, from its beginning unless it is the one that `set_start` spoke of."""
        if epoch != self.epoch:
            self._start = 0
        self.epoch = epoch

    def set_start(self, batches: int) -> None:
        """Leaves out the first batches of the present epoch, which were seen before a resume."""
        self._start = batches

    def __len__(self) -> int:
        """Samples of this process in a whole epoch, whatever the start."""
        return len(self._positions())

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch if self.shuffle else 0
        order = permutation(self.size, self.seed, epoch) if self.shuffle else range(self.size)
        for position in self._positions()[self._start * self.batch_size :]:
            turn, place = divmod(position, self.size)
            yield (epoch * self.rounds + turn) * self.size + order[place]

    def _positions(self) -> range:
        """This process's positions in the order of an epoch."""
        return range(self.rank, self._taken, self.world_size)
