"""The published Python interface of a diffusion model: what notebooks of the 2022 release call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ldm.autoencoders.base import first_latent
from ldm.autoencoders.posterior import DiagonalGaussian
from ldm.types import Conditioning

__all__ = ["PublishedMethods", "to_condition"]

Published = Tensor | Sequence[Tensor] | Mapping[str, Sequence[Tensor]] | Conditioning | None


def to_condition(cond: Published, conditioning_key: str | None) -> Conditioning | None:
    """A condition in one of the published forms as a value.

    A tensor, a list of tensors that belong to one slot, or a dictionary with `c_concat` and
    `c_crossattn`, each a list. Several tensors of a slot are joined: channels, or tokens.
    """
    if cond is None or isinstance(cond, Conditioning):
        return cond
    if not isinstance(cond, Mapping):
        name = "c_concat" if conditioning_key == "concat" else "c_crossattn"
        cond = {name: [cond] if isinstance(cond, Tensor) else cond}
    joined = {
        name: torch.cat(list(parts), dim=1) if len(parts) > 1 else parts[0]
        for name, parts in cond.items()
        if parts
    }
    attended = joined.get("c_crossattn")
    if conditioning_key == "adm":
        return Conditioning(vector=attended)
    return Conditioning(crossattn=attended, concat=joined.get("c_concat"))


class PublishedMethods:
    """Old names for what the models do; nothing of ours calls them."""

    def apply_model(self: Any, x_noisy: Tensor, t: Tensor, cond: Published) -> Tensor:
        """Raw output of the network: (B, C, H, W)."""
        key = self.model.conditioning_key
        return self.denoiser.output(x_noisy, t, to_condition(cond, key))  # type: ignore[no-any-return]

    def q_sample(self: Any, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """x_t of x_0: (B, C, H, W)."""
        noise = torch.randn_like(x_start) if noise is None else noise
        return self.schedule.noised(x_start, noise, t)  # type: ignore[no-any-return]

    @contextmanager
    def ema_scope(self: Any, context: str | None = None) -> Iterator[None]:
        """Inside, the network has its averaged weights."""
        if self.model_ema is None:
            yield
            return
        with self.model_ema.applied_to(self.model):
            yield

    def encode_first_stage(self: Any, x: Tensor) -> DiagonalGaussian | Tensor:
        """The first stage's encoding of images, unscaled."""
        encoding: DiagonalGaussian | Tensor = self.first_stage_model.encode(x)
        return encoding

    def get_first_stage_encoding(
        self: Any,
        encoder_posterior: DiagonalGaussian | Tensor,
        noise: Tensor | None = None,
    ) -> Tensor:
        """A scaled latent of an encoding; a posterior is sampled, with this noise if given."""
        if isinstance(encoder_posterior, DiagonalGaussian) and noise is None:
            noise = torch.randn_like(encoder_posterior.mean)
        z: Tensor = self.scale_factor * first_latent(encoder_posterior, noise)
        return z

    @torch.no_grad()
    def decode_first_stage(
        self: Any,
        z: Tensor,
        predict_cids: bool = False,
        force_not_quantize: bool = False,
    ) -> Tensor:
        """Images of scaled latents; with `predict_cids`, of codebook logits (B, K, h, w)."""
        first_stage, options = self.first_stage_model, {}
        if predict_cids:
            codes = z.argmax(dim=1)
            shape = (*codes.shape, first_stage.latent_channels)
            # published: entries of the codebook are divided by the scale too
            z = first_stage.quantize.get_codebook_entry(codes, shape=shape)
        if predict_cids or (force_not_quantize and hasattr(first_stage, "quantize")):
            options["force_not_quantize"] = True
        images: Tensor = first_stage.decode(z / self.scale_factor, **options)
        return images

    def get_learned_conditioning(self: Any, c: Any) -> Tensor:
        """The only encoder's output for a raw condition, or for a batch that holds it."""
        (part,) = self.conditioner.parts
        output: Tensor = part.embedder.encode(c[part.key] if isinstance(c, Mapping) else c)
        return output
