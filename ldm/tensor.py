"""Small operations on tensors that more than one part needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = [
    "count_parameters",
    "expand_to",
    "mean_flat",
    "sent_to",
    "to_image_tensor",
    "to_uint8",
]


def expand_to(value: Tensor, like: Tensor) -> Tensor:
    """View (B,) as (B, 1, ..., 1) with as many dimensions as `like`."""
    return value.reshape(-1, *([1] * (like.ndim - 1)))


def mean_flat(x: Tensor) -> Tensor:
    """Mean over everything but the batch: (B, ...) to (B,)."""
    return x.flatten(1).mean(dim=1)


def count_parameters(module: nn.Module, *, trainable: bool = False) -> int:
    """Number of parameter elements; with `trainable`, only those that require gradients."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def sent_to(value: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device, without waiting for what that device still has to do.

    A copy from ordinary memory to a GPU waits until the GPU is idle; one from pinned memory takes
    its turn.
    """
    if value.device.type == "cpu" and torch.device(device).type == "cuda":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def to_image_tensor(images: Tensor) -> Tensor:
    """Images of a batch as a network takes them.

    images: (B, H, W, C) or (B, H, W); uint8 in 0..255, or floating point already in [-1, 1].
    Returns (B, C, H, W) floating point in [-1, 1]; channels-last in memory on CUDA, where
    convolutions want it, contiguous elsewhere, where the networks arrange what is large enough.
    """
    if images.ndim == 3:
        images = images[..., None]
    layout = torch.channels_last if images.is_cuda else torch.contiguous_format
    images = images.permute(0, 3, 1, 2).contiguous(memory_format=layout)
    if images.dtype == torch.uint8:
        return images.float().div_(127.5).sub_(1)
    return images.float() if images.dtype == torch.float64 else images


def to_uint8(images: Tensor) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] as (B, H, W, C) uint8, clipped, rounded to nearest."""
    scaled = images.detach().float().clamp(-1, 1).add(1).mul(127.5)
    return scaled.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
