"""Sinusoidal embeddings of the diffusion time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["sine_first_timestep_embedding", "timestep_embedding"]


def timestep_embedding(
    timesteps: Tensor, dim: int, max_period: float = 10000.0, repeat_only: bool = False
) -> Tensor:
    """Cosines, then sines, of t at dim // 2 geometric frequencies max_period^(-i / half).

    Sec. 3.5 of Attention Is All You Need (arXiv:1706.03762), as DDPM (arXiv:2006.11239) uses it.

    timesteps: (B,), in steps, whole or fractional.
    Returns (B, dim) float32; an odd `dim` ends in a zero. With `repeat_only`, t repeated.
    """
    if repeat_only:
        return timesteps[:, None].expand(-1, dim)
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps[:, None].float() * torch.exp(-math.log(max_period) / half * index)
    return _pad_to(torch.cat([angles.cos(), angles.sin()], dim=1), dim)


def sine_first_timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sines, then cosines, of t at frequencies 10000^(-i / (half - 1)).

    The form of the U-Net of DDPM (`ldm.nets.ddpm_unet`); shapes as in `timestep_embedding`.
    """
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps[:, None].float() * torch.exp(-math.log(10000.0) / (half - 1) * index)
    return _pad_to(torch.cat([angles.sin(), angles.cos()], dim=1), dim)


def _pad_to(embedding: Tensor, dim: int) -> Tensor:
    return F.pad(embedding, (0, dim - embedding.shape[1]))
