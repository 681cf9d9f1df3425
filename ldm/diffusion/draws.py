"""Random numbers by name: each example's are a function of (seed, step, key, stream) alone.

So they do not depend on the batch an example is in, on the number of ranks or on gradient
accumulation, and adding one more draw changes no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ldm.hashing import hash64
from ldm.tensor import sent_to

__all__ = ["Draws", "GeneratorDraws", "KeyedDraws", "normal_like"]


class Draws(Protocol):
    """Random numbers for a batch of B examples; a stream names what they are for."""

    def normal(self, shape: Sequence[int], stream: str) -> Tensor:
        """Standard normal numbers (B, *shape), float32."""
        ...

    def uniform(self, stream: str) -> Tensor:
        """Uniform numbers (B,) in [0, 1), float32."""
        ...


def normal_like(draws: Draws, x: Tensor, stream: str) -> Tensor:
    """Standard normal numbers of the shape, type and device of x (B, ...).

    Wherever they are made, they arrive without waiting for the device of x.
    """
    return sent_to(draws.normal(x.shape[1:], stream), x.device).to(x.dtype)


@dataclass(frozen=True)
class KeyedDraws:
    """Numbers of each example from its own key.

    keys: one per example, such as its index in the data set or the seed of an image.
    seed: of the run.  step: of the training, 0 where there is none.
    device: where normal numbers are made; a CPU and a GPU give different ones.
    """

    keys: Sequence[int | str]
    seed: int
    step: int = 0
    device: torch.device | str = "cpu"

    def normal(self, shape: Sequence[int], stream: str) -> Tensor:
        """Standard normal numbers (B, *shape), float32."""
        numbers = torch.empty(len(self.keys), *shape, device=self.device)
        generator = torch.Generator(self.device)
        for row, key in zip(numbers, self.keys, strict=True):
            row.normal_(generator=generator.manual_seed(self._hash(key, stream)))
        return numbers

    def uniform(self, stream: str) -> Tensor:
        """Uniform numbers (B,) in [0, 1), float32, on a grid of 2^-24; always on the CPU.

        Decisions about texts are taken there, and reading them back from a GPU would wait for it.
        """
        numbers = [(self._hash(key, stream) >> 39) / 2**24 for key in self.keys]
        return torch.tensor(numbers, dtype=torch.float32)

    def _hash(self, key: int | str, stream: str) -> int:
        """63 bits; 1 and "1" are different keys, 1 and a NumPy 1 are the same."""
        key = key if isinstance(key, str) else int(key)
        name = repr((self.seed, self.step, key, stream)).encode()
        return hash64(name) >> 1


@dataclass(frozen=True)
class GeneratorDraws:
    """Numbers of a batch from one generator, in the order they are asked for."""

    generator: torch.Generator
    batch_size: int

    def normal(self, shape: Sequence[int], stream: str) -> Tensor:
        """Standard normal numbers (B, *shape), float32; the stream is not used."""
        device = self.generator.device
        return torch.randn(self.batch_size, *shape, generator=self.generator, device=device)

    def uniform(self, stream: str) -> Tensor:
        """Uniform numbers (B,) in [0, 1), float32; the stream is not used."""
        device = self.generator.device
        return torch.rand(self.batch_size, generator=self.generator, device=device)
