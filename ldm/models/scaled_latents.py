"""The latents of a frozen first stage, scaled to what the second stage is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.autoencoders.base import first_latent
from ldm.diffusion.draws import Draws
from ldm.models.diffusion.scale import first_batches, measured_scale, require_scale
from ldm.models.one_optimizer import OneOptimizer

__all__ = ["ScaledLatents"]


class ScaledLatents(OneOptimizer):
    """A module that is trained on latents.

    first_stage_model: a module that is a `FirstStage`, frozen.
    scale_factor: what its latents are multiplied by.
    scale_by_std: whether the scale is measured when a new run begins.
    _is_restored: whether a checkpoint has brought the scale already.
    """

    scale_factor: Tensor | float
    scale_by_std: bool
    first_stage_model: Any
    _is_restored: bool

    @torch.no_grad()
    def encode(self, images: Tensor, draws: Draws | None = None) -> Tensor:
        """Scaled latents (B, c, h, w) of images (B, C, H, W).

        draws: stream "posterior" samples a KL first stage; without, its most likely latent.
        """
        return self.scale_factor * self._latent(images, draws)

    def _latent(self, images: Tensor, draws: Draws | None) -> Tensor:
        encoding = self.first_stage_model.encode(images)
        if draws is None or isinstance(encoding, Tensor):
            return first_latent(encoding)
        return first_latent(encoding, draws.normal(encoding.mean.shape[1:], "posterior"))

    def on_train_start(self) -> None:
        """Measure the scale on the first batch of all ranks, in a new run."""
        if self._is_restored or self.trainer.ckpt_path or self.global_step:
            return
        if self.scale_by_std:
            loader = self.trainer.train_dataloader
            batches = first_batches(loader, self.trainer.accumulate_grad_batches)
            self.measure_scale(self.trainer.strategy.batch_to_device(each) for each in batches)
        require_scale(self.scale_factor)

    @torch.no_grad()
    def measure_scale(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Set the scale to 1 / standard deviation of these batches' latents, over all ranks.

        The scale is part of the state dict.
        """
        latents = (
            self._latent(self.get_input(batch), self.draws(batch, index))
            for index, batch in enumerate(batches)
        )
        assert isinstance(self.scale_factor, Tensor)
        self.scale_factor.copy_(measured_scale(latents))
