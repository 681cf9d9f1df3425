"""Vector quantization of latents with a learned codebook."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TypedDict, Unpack

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from ldm.nets.quantizer_base import (
    Quantization,
    Quantizer,
    nearest_codes,
    rotated,
    straight_through,
)
from ldm.nets.quantizer_cures import (
    KMeansInit,
    Restart,
    gathered_sample,
    k_means,
    step_generator,
)
from ldm.ranges import Positive, Weight
from ldm.ranks import sum_over_ranks, world_size
from ldm.tensor import sent_to

__all__ = ["CodebookQuantizer", "Cures", "Quantization", "Quantizer", "VectorQuantizer"]


class Cures(TypedDict, total=False):
    """What a learned codebook takes against its collapse, each with its default; none published."""

    l2_norm: bool  # latents and codes are scaled to unit length; false
    rotation: bool  # gradients go back through a rotation instead of straight through; false
    kmeans_init: KMeansInit | bool  # the codebook starts at centres of latents; false
    restart: Restart | bool  # dead codes are replaced by latents; false


class CodebookQuantizer(Quantizer):
    """A quantizer that takes the nearest of a learned codebook, with cures of its collapse.

    l2_norm: latents and codes are scaled to unit length first (ViT-VQGAN, arXiv:2110.04627,
    section 3.2), best with 8 channels or fewer.
    rotation: gradients go back through a rotation instead of straight through, see `rotated`.
    kmeans_init: see `KMeansInit`; true is one with its defaults.
    restart: see `Restart`; true is one with its defaults.

    With several processes all have the same codebook at any time. `usage` (K,) of `restart` and
    `is_initialized` of `kmeans_init` are part of the state dict. One without them, of a codebook
    that was trained without these cures, will do, and k-means leaves that codebook alone.
    """

    usage: Tensor
    is_initialized: Tensor

    def __init__(
        self,
        n_e: int,
        e_dim: int,
        *,
        sane_index_shape: bool = False,
        l2_norm: bool = False,
        rotation: bool = False,
        kmeans_init: KMeansInit | bool = False,
        restart: Restart | bool = False,
    ) -> None:
        super().__init__(n_e, e_dim, sane_index_shape=sane_index_shape)
        self.l2_norm = l2_norm
        self.rotation = rotation
        self.kmeans_init = KMeansInit() if kmeans_init is True else kmeans_init or None
        self.restart = Restart() if restart is True else restart or None
        if self.restart is not None:
            self.register_buffer("usage", torch.ones(n_e))
        if self.kmeans_init is not None:
            self.register_buffer("is_initialized", torch.zeros((), dtype=torch.bool))
        # as a Python value: reading a tensor of the device would wait for it
        self._collects = self.kmeans_init is not None
        self.register_load_state_dict_pre_hook(_complete)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_read_flag)  # type: ignore[no-untyped-call]
        self._step, self._seed = 0, 0
        # of this step's passes; no buffers, as those of one rank would overwrite the others'
        self._counts: Tensor | None = None
        self._latents: list[Tensor] = []
        self._squares: Tensor | None = None  # (N,), from the last latents to their codes
        self._collected: Tensor | None = None  # of the steps before, for `kmeans_init`

    @property
    @abstractmethod
    def _codebook(self) -> Tensor:
        """What the codes are stored in, (K, d)."""

    @abstractmethod
    def _loss(self, z: Tensor, q: Tensor) -> Tensor:
        """Loss () of latents and the codes in their place, both (B, h, w, d)."""

    def completed(self, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """A state dict with this quantizer's counters; a codebook that is loaded is initialized."""
        completed, codes = dict(state), state.get(f"{prefix}embedding.weight")
        if codes is not None and self.restart is not None:
            completed.setdefault(f"{prefix}usage", torch.ones(len(codes), device=codes.device))
        if codes is not None and self.kmeans_init is not None:
            is_initialized = torch.ones((), dtype=torch.bool, device=codes.device)
            completed.setdefault(f"{prefix}is_initialized", is_initialized)
        return completed

    def codes(self) -> Tensor:
        """The codebook as it is searched, (K, d) float32: of unit length with `l2_norm`."""
        codes = self._codebook.float()
        return F.normalize(codes, dim=1) if self.l2_norm else codes

    def nearest(self, z: Tensor) -> Tensor:
        """Index of the code nearest to each vector: (..., e_dim) to (...)."""
        return nearest_codes(z, self.codes())

    def _quantize(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.l2_norm:
            z = F.normalize(z, dim=-1)
        indices = self.nearest(z)
        q = self._lookup(indices)
        loss = self._loss(z, q)
        if self.learns_from(z):
            vectors, codes = (v.detach().reshape(-1, self.e_dim) for v in (z, q))
            self._observe(vectors, indices.flatten(), codes)
        return (rotated if self.rotation else straight_through)(z, q), loss, indices

    def _entries(self, indices: Tensor) -> Tensor:
        return self._lookup(indices)

    def _lookup(self, indices: Tensor) -> Tensor:
        """Codes by their place in the codebook: (...) to (..., d)."""
        codes = self._rows(indices)
        return F.normalize(codes, dim=-1) if self.l2_norm else codes

    def _rows(self, indices: Tensor) -> Tensor:
        """What is stored at places in the codebook: (...) to (..., d)."""
        return F.embedding(indices, self._codebook)

    def begin_step(self, step: int, seed: int = 0) -> None:
        """Take note of what the cures' random numbers are a function of."""
        self._step, self._seed = step, seed

    def _observe(self, z: Tensor, indices: Tensor, codes: Tensor) -> None:
        """Keep of a pass what `end_step` needs: latents and their codes (N, d), indices (N,)."""
        if self._collects:
            self._latents.append(z)
        elif self.restart is not None:
            counts = torch.zeros_like(self.usage)
            counts.index_add_(0, indices, torch.ones_like(z[:, 0]))
            self._counts = counts if self._counts is None else self._counts + counts
            self._latents = [z]
            self._squares = (z - codes).square().sum(dim=1)

    @torch.no_grad()
    def end_step(self) -> None:
        """Initialize the codebook, once there are enough latents, or restart its dead codes."""
        if not self._latents:
            return
        if self._collects:
            self._initialize()
        elif self.restart is not None and self._counts is not None:
            dead = self.restart.dead(self.usage, sum_over_ranks(self._counts))
            sample = gathered_sample(
                self._latents[0],
                self.num_codes,
                generator=step_generator(self._seed, self._step),
                weights=self._squares,
            )
            # the first dead code takes the first of the sample
            self._replace(sample[(dead.cumsum(0) - 1).clamp_min(0)], dead)
            self._counts, self._latents = None, []

    def _replace(self, codes: Tensor, which: Tensor) -> None:
        """Put new codes (K, d) in the place of some, which (K,) bool."""
        self._codebook.copy_(torch.where(which[:, None], codes, self._codebook))

    def collected(self) -> Tensor:
        """Latents (N, d) of this rank that k-means waits for more of; none once it has been."""
        return super().collected() if self._collected is None else self._collected

    def restore_collected(self, latents: Tensor) -> None:
        """Keep what `collected` gave, and nothing else."""
        self._collected = latents if self._collects and len(latents) else None

    def _initialize(self) -> None:
        assert self.kmeans_init is not None
        if self._collected is not None:
            self._latents.insert(0, sent_to(self._collected, self._latents[0].device))
        latents = torch.cat(self._latents)
        needed = self.kmeans_init.latents_per_code * self.num_codes
        found = len(latents)
        if world_size() > 1:  # which waits for the device, in each step that collects
            found = int(sum_over_ranks(torch.tensor(found, device=latents.device)))
        if found < needed:
            self._collected, self._latents = latents, []
            return
        generator = step_generator(self._seed, self._step)
        sample = gathered_sample(latents, needed, generator=generator)
        centres = k_means(
            sample,
            self.num_codes,
            generator=generator,
            iterations=self.kmeans_init.iterations,
            on_sphere=self.l2_norm,
        )
        if world_size() > 1:  # each rank has drawn for itself
            distributed.broadcast(centres, src=0)
        self._replace(centres, torch.ones_like(centres[:, 0], dtype=torch.bool))
        self.is_initialized.fill_(True)
        self._collects, self._collected, self._latents = False, None, []


def _complete(
    quantizer: CodebookQuantizer, state: dict[str, Tensor], prefix: str, *_: object
) -> None:
    state |= quantizer.completed(state, prefix)


def _read_flag(quantizer: CodebookQuantizer, _: object) -> None:
    if quantizer.kmeans_init is not None and not quantizer.is_initialized.is_meta:
        quantizer._collects = not bool(quantizer.is_initialized)


class VectorQuantizer(CodebookQuantizer):
    """Replaces each vector by the nearest of a learned codebook, eq. (1)-(3) of arXiv:1711.00937.

    The loss is |sg(q) - z|^2 + beta |q - sg(z)|^2, averaged.
    published: so beta weighs the codebook term, where the paper weighs the commitment to it;
    `legacy=False` is the paper's loss.

    remap: (R,) the codes in use; indices are then given in 0..R-1, an unused code becoming
    `unknown_index`: a number, "extra" (R) or "random".  sane_index_shape: indices are (B, h, w)
    instead of flat.
    l2_norm, rotation, kmeans_init, restart: see `CodebookQuantizer`; none is published.

    The published quantizer uses few of many codes. For a new training take `EMAVectorQuantizer`
    (`ldm.nets.quantizer_ema`) as its docstring says.
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
        **cures: Unpack[Cures],
    ) -> None:
        super().__init__(n_e, e_dim, sane_index_shape=sane_index_shape, **cures)
        self.n_e = n_e
        self.beta = beta
        self.legacy = legacy
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

    @property
    def num_indices(self) -> int:
        """How many different indices there are: of all codes, or of those in `remap`."""
        return self.re_embed

    @property
    def _codebook(self) -> Tensor:
        return self.embedding.weight

    def _rows(self, indices: Tensor) -> Tensor:
        rows: Tensor = self.embedding(indices)
        return rows

    def _loss(self, z: Tensor, q: Tensor) -> Tensor:
        to_codes, to_latents = (q.detach() - z).square().mean(), (q - z.detach()).square().mean()
        if self.legacy:
            return to_codes + self.beta * to_latents
        return self.beta * to_codes + to_latents

    def _quantize(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, loss, indices = super()._quantize(z)
        return q, loss, indices if self.used is None else self.remap_to_used(indices)

    def _entries(self, indices: Tensor) -> Tensor:
        return super()._entries(indices if self.used is None else self.unmap_to_all(indices))

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
