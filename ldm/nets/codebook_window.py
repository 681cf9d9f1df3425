"""How much of a codebook is in use, measured over many latents."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ldm.ranks import sum_over_ranks, world_size
from ldm.tensor import sent_to

__all__ = ["CodebookCounts", "CodebookUse", "CodebookWindow", "codebook_use_of", "count_codes"]


class CodebookUse(NamedTuple):
    """Of a codebook of K entries, each 0-d float32.

    usage: share of the entries that occur, in [0, 1].
    perplexity: exp of the entropy, 1 when one entry occurs, K when all occur alike.
    num_counted: how many codes that was measured of. Where it is 0 the other two are 0 and 1.
    """

    usage: Tensor
    perplexity: Tensor
    num_counted: Tensor


def codebook_use_of(counts: Tensor) -> CodebookUse:
    """What counts (K,) of each entry say; nothing is waited for."""
    total = counts.sum()
    share = counts.double() / total.clamp_min(1)
    entropy = -torch.special.xlogy(share, share).sum()
    usage = (counts > 0).float().mean()
    return CodebookUse(usage, entropy.exp().float(), total.float())


class CodebookCounts:
    """Counts of all codes that were added.

    num_codes: K. Codes outside 0..K-1 are not counted.  device: of the codes.
    """

    def __init__(self, num_codes: int, device: torch.device | str = "cpu") -> None:
        self.num_codes = num_codes
        self._counts = torch.zeros(num_codes, dtype=torch.int64, device=device)

    def add(self, codes: Tensor) -> None:
        """Count codes, integers of any shape."""
        self._counts += count_codes(codes, self.num_codes)

    def use(self) -> CodebookUse:
        """Use by all ranks together, which all call this, whatever they counted."""
        return codebook_use_of(sum_over_ranks(self._counts))


class CodebookWindow:
    """The last codes of a training.

    num_codes: K. Codes outside 0..K-1 take a place, but are not counted.
    length: how many codes are kept, by all ranks together, each an equal part.
    """

    def __init__(self, num_codes: int, length: int = 2**16) -> None:
        self.num_codes = num_codes
        self.length = length
        self._codes: Tensor | None = None  # a ring; -1 where there is none yet
        self._next = 0

    def add(self, codes: Tensor) -> None:
        """Take in codes, integers of any shape, in the place of the oldest."""
        length = -(-self.length // world_size())
        codes = codes.detach().flatten()[-length:]
        if self._codes is None or len(self._codes) != length:
            self._codes, self._next = codes.new_full((length,), -1), 0
        ring = self._codes = sent_to(self._codes, codes.device)
        first = codes[: length - self._next]
        rest = codes[len(first) :]
        ring[self._next : self._next + len(first)] = first
        ring[: len(rest)] = rest
        self._next = (self._next + len(codes)) % length

    def codes(self) -> Tensor:
        """What this rank keeps, (N,) from the oldest on; nothing before the first codes."""
        if self._codes is None:
            return torch.empty(0, dtype=torch.int64)
        return self._codes.roll(-self._next)

    def restore(self, codes: Tensor) -> None:
        """Keep what `codes` gave, and nothing else."""
        self._codes = None
        if len(codes):
            self.add(codes)

    def use(self, device: torch.device | None = None) -> CodebookUse:
        """Use by all ranks together, which all call this, whatever they took in.

        device: where it is summed, if that is not where the codes are.
        """
        codes = self.codes() if self._codes is None else self._codes
        codes = codes if device is None else sent_to(codes, device)
        return codebook_use_of(sum_over_ranks(count_codes(codes, self.num_codes)))


def count_codes(codes: Tensor, num_codes: int) -> Tensor:
    """How often each of 0..num_codes-1 occurs in integers of any shape, (num_codes,) int64.

    Other numbers are not counted. The device is not waited for, as bincount would.
    """
    codes = codes.detach().flatten()
    is_code = (codes >= 0) & (codes < num_codes)
    counts = torch.zeros(num_codes, dtype=torch.int64, device=codes.device)
    return counts.index_add_(0, codes.where(is_code, 0), is_code.long())
