"""What every quantizer is, and what several are made of: search and gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.nets.precision import without_autocast

__all__ = ["Quantization", "Quantizer", "nearest_codes", "rotated", "straight_through"]

Quantization = tuple[Tensor, Tensor, tuple[None, None, Tensor]]


class Quantizer(nn.Module, ABC):
    """Replaces each vector of a latent by one of finitely many codes.

    e_dim: width d of a code, the channels of the latent.  num_codes: K.
    num_indices: how many different indices `forward` gives; K unless they are numbered anew.
    sane_index_shape: indices are (B, h, w) instead of flat.

    A training calls `begin_step` before the forward passes of an optimizer step and `end_step`
    after the optimizer has moved. A pass counts for `end_step` in training mode only, and only if
    its latents carry a gradient: one that is made again, or only looked at, leaves no trace. The
    codes do not move within a step.
    """

    e_dim: int
    num_codes: int

    def __init__(self, num_codes: int, e_dim: int, *, sane_index_shape: bool = False) -> None:
        super().__init__()
        self.num_codes = num_codes
        self.e_dim = e_dim
        self.sane_index_shape = sane_index_shape

    @property
    def num_indices(self) -> int:
        """How many different indices there are."""
        return self.num_codes

    def forward(self, z: Tensor, noise: Tensor | None = None) -> Quantization:
        """z: (B, e_dim, h, w), of any precision; distances and sums are taken in float32.

        noise: standard normal numbers (B, *noise_shape(z)), for a quantizer that draws its codes.

        Returns the quantized z, with a gradient to z; the loss (); and (None, None, indices),
        indices (B h w,) in that order, or (B, h, w).
        Raises ValueError for another width, and for noise that is not asked for.
        """
        if z.shape[1] != self.e_dim:
            raise ValueError(f"latents have {z.shape[1]} channels, the codes have {self.e_dim}")
        # in half precision neighbouring codes would be confused
        with without_autocast(z):
            vectors = z.permute(0, 2, 3, 1).float()
            made = self._quantize(vectors) if noise is None else self._draw(vectors, noise)
        q, loss, indices = made
        q = q.permute(0, 3, 1, 2).contiguous().to(z.dtype)
        return q, loss, (None, None, indices if self.sane_index_shape else indices.flatten())

    def get_codebook_entry(
        self, indices: Tensor, shape: tuple[int, int, int, int] | None = None
    ) -> Tensor:
        """Codes of indices: (...) to (..., e_dim).

        With shape (B, h, w, e_dim), of any indices of as many elements, (B, e_dim, h, w).
        """
        codes = self._entries(indices)
        if shape is None:
            return codes
        return codes.reshape(shape).permute(0, 3, 1, 2).contiguous()

    def noise_shape(self, z: Tensor) -> tuple[int, ...] | None:
        """Shape, without B, of the noise that a pass of these latents draws codes by; None if none.

        Without that noise, too, nothing is drawn.
        """
        return None

    def begin_step(self, step: int, seed: int = 0) -> None:
        """What depends on the optimizer step, counted from 0, and on the seed of the run."""
        return

    def end_step(self) -> None:
        """Learn from this step's passes what no gradient teaches; every rank calls this."""
        return

    def completed(self, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """A state dict of whatever holds this quantizer under a prefix, for this one to load.

        Where it has a codebook, counters that this quantizer keeps beside it and that one did not
        are added as they are at the beginning.
        """
        return dict(state)

    def collected(self) -> Tensor:
        """Latents (N, d) of this rank that were kept for a later step, and are in no state dict."""
        return torch.empty(0, self.e_dim)

    def restore_collected(self, latents: Tensor) -> None:
        """Keep what `collected` gave, and nothing else."""
        return

    def learns_from(self, z: Tensor) -> bool:
        """Whether a pass of these latents counts: in training mode, with a gradient."""
        return self.training and z.requires_grad and torch.is_grad_enabled()

    @abstractmethod
    def _quantize(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of z (B, h, w, d) float32: quantized z, loss (), indices (B, h, w)."""

    def _draw(self, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same, by noise."""
        raise ValueError(f"{type(self).__name__} draws nothing in this mode, but got noise")

    @abstractmethod
    def _entries(self, indices: Tensor) -> Tensor:
        """Codes of indices: (...) to (..., d)."""


@torch.no_grad()
def nearest_codes(z: Tensor, codes: Tensor, *, max_distances: int | None = None) -> Tensor:
    """Index of the code (K, d) nearest to each vector: (..., d) to (...), in float32.

    Of codes equally near, the first.
    max_distances: how many are held at once; by default as many as a processor's cache holds, or
    64 MiB on a GPU.
    """
    if max_distances is None:
        max_distances = 2**20 if z.device.type == "cpu" else 2**24
    codes = codes.float()
    half_square = codes.square().sum(dim=1) / 2
    rows = torch.split(z.reshape(-1, codes.shape[1]).float(), max(1, max_distances // len(codes)))
    with without_autocast(z):
        # |z - e|^2 / 2, without |z|^2, which is the same for all codes; min is twice argmin's speed
        found = [torch.addmm(half_square, r, codes.t(), alpha=-1).min(dim=1).indices for r in rows]
    return torch.cat(found).reshape(z.shape[:-1])


def straight_through(z: Tensor, q: Tensor) -> Tensor:
    """The value of q, with the gradient that z would have: both (..., d)."""
    return z + (q - z).detach()


def rotated(z: Tensor, q: Tensor) -> Tensor:
    """The value of q, reached from z by a rotation and a scale that are constants: both (..., d).

    The rotation trick, eq. (4) and section 4.2 of arXiv:2410.06424: q = |q| / |z| R z with
    R = I - 2 r r^T + 2 q_hat z_hat^T and r the direction of z_hat + q_hat. The gradient to z is
    |q| / |z| R^T times that of q, so the angle between gradient and vector is kept.
    """
    z_hat, q_hat = (F.normalize(v.detach(), dim=-1) for v in (z, q))
    r = F.normalize(z_hat + q_hat, dim=-1)
    # a latent at the origin has no direction; its gradient stays finite
    length = z.detach().norm(dim=-1, keepdim=True).clamp_min(1e-6)
    scale = q.detach().norm(dim=-1, keepdim=True) / length
    along_r = (r * z).sum(dim=-1, keepdim=True)
    along_z = (z_hat * z).sum(dim=-1, keepdim=True)
    return straight_through(scale * (z - 2 * along_r * r + 2 * along_z * q_hat), q)
