"""Gradient checkpointing: activations computed again in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["recompute"]


def recompute(block: Callable[..., Tensor], *inputs: Tensor | None, enabled: bool) -> Tensor:
    """`block(*inputs)`; when enabled and gradients are wanted, keeping only the inputs.

    Costs one more forward pass of the block. Follows autocast and gives the same gradients.
    """
    if enabled and torch.is_grad_enabled():
        output: Tensor = checkpoint(block, *inputs, use_reentrant=False)
        return output
    return block(*inputs)
