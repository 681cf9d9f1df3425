"""Finite scalar quantization: a codebook that is a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.nets.quantizer_base import Quantizer, straight_through
from ldm.ranges import Positive

__all__ = ["FSQ"]

_MARGIN = 1e-3  # by which the outermost levels are never overshot


class FSQ(Quantizer):
    """Each channel of the latent is bounded and rounded to one of few levels (arXiv:2309.15505).

    levels: L_i of each channel i, 2 or more; e_dim is their number, num_codes their product. The
    paper suggests 5 or more each: [8, 5, 5, 5] for 1000 codes, [8, 6, 5] for 240.

    With h = (L - 1) / 2 the bound is h tanh(z + s) - o, rounded straight through. The offset o is
    0 for odd levels and 1/2 for even ones, whose integers are -L/2 ... L/2 - 1; the shift s puts
    z = 0 on the integer 0 (two levels have no middle: s = 0 splits them at z = 0). Codes are the
    integers over floor(L / 2), in [-1, 1]. An index is a number of mixed radix, the first channel
    the lowest digit. Nothing is learned, the loss is 0.

    Raises ValueError for no levels, for fewer than 2, and for more codes than an int64 counts.
    """

    bounds: Tensor  # (3, d): h, o and s
    radix: Tensor  # (d,) L
    half_width: Tensor  # (d,) floor(L / 2)
    place: Tensor  # (d,) what a digit of each channel counts

    def __init__(self, levels: Sequence[Positive], *, sane_index_shape: bool = False) -> None:
        if not levels or min(levels) < 2:
            raise ValueError(f"levels={list(levels)}: expected one or more numbers of 2 and above")
        if math.prod(levels) > 2**62:
            raise ValueError(f"levels={list(levels)}: more than 2^62 codes")
        super().__init__(math.prod(levels), len(levels), sane_index_shape=sane_index_shape)
        self.levels = tuple(levels)
        half = [(level - 1) * (1 - _MARGIN) / 2 for level in levels]
        offset = [0.5 * (level % 2 == 0) for level in levels]
        # the paper's tan(o / h) is this to third order
        shift = [math.atanh(o / h) if o < h else 0.0 for o, h in zip(offset, half, strict=True)]
        place = [math.prod(levels[:number]) for number in range(len(levels))]
        self._constant("bounds", torch.tensor([half, offset, shift]))
        self._constant("radix", torch.tensor(levels))
        self._constant("half_width", torch.tensor([level // 2 for level in levels]))
        self._constant("place", torch.tensor(place))

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def codes(self) -> Tensor:
        """All codes in the order of their indices, (K, d) float32."""
        return self._entries(torch.arange(self.num_codes, device=self.radix.device))

    def _quantize(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        half, offset, shift = self.bounds.float()
        bounded = half * torch.tanh(z + shift) - offset
        integers = bounded.detach().round()
        indices = ((integers.long() + self.half_width) * self.place).sum(dim=-1)
        return straight_through(bounded, integers) / self.half_width, z.new_zeros(()), indices

    def _entries(self, indices: Tensor) -> Tensor:
        digits = indices[..., None] // self.place % self.radix
        return (digits - self.half_width) / self.half_width
