"""Vector quantization of latents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm.nets.precision import without_autocast
from ldm.ranges import Positive, Weight

__all__ = ["Quantization", "VectorQuantizer"]

# distances held at once: rows of latents times codes
_MAX_DISTANCES = 2**24

Quantization = tuple[Tensor, Tensor, tuple[None, None, Tensor]]


class VectorQuantizer(nn.Module):
    """Replaces each vector by the nearest of a learned codebook, eq. (1)-(3) of arXiv:1711.00937.

    The loss is |sg(q) - z|^2 + beta |q - sg(z)|^2, averaged.
    published: so beta weighs the codebook term, where the paper weighs the commitment to it;
    `legacy=False` is the paper's loss.

    remap: (R,) the codes in use; indices are then given in 0..R-1, an unused code becoming
    `unknown_index`: a number, "extra" (R) or "random".  sane_index_shape: indices are (B, h, w)
    instead of flat.
    """

    used: Tensor | None  # (R,), what `remap` says

    def __init__(
        self,
        n_e: Positive,
        e_dim: Positive,
        beta: Weight = 0.25,
        remap: Tensor | None = None,
        unknown_index: int | str = "random",
        sane_index_shape: bool = False,
        legacy: bool = True,
    ) -> None:
        super().__init__()
        self.n_e = n_e
        self.e_dim = e_dim
        self.beta = beta
        self.legacy = legacy
        self.sane_index_shape = sane_index_shape
        self.embedding = nn.Embedding(n_e, e_dim)
        nn.init.uniform_(self.embedding.weight, -1 / n_e, 1 / n_e)
        self.unknown_index = unknown_index
        self.register_buffer("used", None if remap is None else torch.as_tensor(remap).long())
        self.re_embed = n_e  # number of indices
        if remap is not None:
            if not (isinstance(unknown_index, int) or unknown_index in ("extra", "random")):
                raise ValueError(
                    f"unknown_index={unknown_index!r}: expected a number, 'extra' or 'random'"
                )
            self.re_embed = len(remap) + (unknown_index == "extra")

    def forward(self, z: Tensor) -> Quantization:
        """z: (B, e_dim, h, w).

        Returns the quantized z, whose gradient goes straight through to z; the loss (); and
        (None, None, indices), indices (B h w,) in that order, or (B, h, w).
        Raises ValueError for another width.
        """
        if z.shape[1] != self.e_dim:
            raise ValueError(f"latents have {z.shape[1]} channels, the codes have {self.e_dim}")
        dtype, z = z.dtype, z.permute(0, 2, 3, 1).float()
        indices = self.nearest(z)
        q = self.embedding(indices)
        to_codes, to_latents = (q.detach() - z).square().mean(), (q - z.detach()).square().mean()
        if self.legacy:
            loss = to_codes + self.beta * to_latents
        else:
            loss = self.beta * to_codes + to_latents
        q = (z + (q - z).detach()).permute(0, 3, 1, 2).contiguous().to(dtype)
        if self.used is not None:
            indices = self.remap_to_used(indices)
        return q, loss, (None, None, indices if self.sane_index_shape else indices.flatten())

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Index of the code nearest to each vector: (..., e_dim) to (...)."""
        codes = self.embedding.weight.float()
        half_square = codes.square().sum(dim=1) / 2
        rows = torch.split(z.reshape(-1, self.e_dim).float(), max(1, _MAX_DISTANCES // self.n_e))
        # in half precision neighbouring codes would be confused
        with without_autocast(z):
            # |z - e|^2 / 2, without |z|^2, which is the same for all codes
            found = [torch.addmm(half_square, r, codes.t(), alpha=-1).argmin(dim=1) for r in rows]
        return torch.cat(found).reshape(z.shape[:-1])

    def remap_to_used(self, indices: Tensor) -> Tensor:
        """Indices of the codebook as positions in `remap`."""
        assert self.used is not None
        position = torch.full((self.n_e,), -1, device=indices.device)
        position[self.used] = torch.arange(len(self.used), device=indices.device)
        new = position[indices]
        if self.unknown_index == "random":
            other = torch.randint_like(new, len(self.used))
        else:
            other = torch.full_like(
                new, len(self.used) if self.unknown_index == "extra" else int(self.unknown_index)
            )
        return torch.where(new < 0, other, new)

    def unmap_to_all(self, indices: Tensor) -> Tensor:
        """Positions in `remap` as indices of the codebook; the extra position becomes the first."""
        assert self.used is not None
        return self.used[torch.where(indices < len(self.used), indices, 0)]

    def get_codebook_entry(
        self, indices: Tensor, shape: tuple[int, int, int, int] | None = None
    ) -> Tensor:
        """Codes of indices: (...) to (..., e_dim).

        With shape (B, h, w, e_dim), of any indices of as many elements, (B, e_dim, h, w).
        """
        if self.used is not None:
            indices = self.unmap_to_all(indices)
        codes: Tensor = self.embedding(indices)
        if shape is None:
            return codes
        return codes.reshape(shape).permute(0, 3, 1, 2).contiguous()
