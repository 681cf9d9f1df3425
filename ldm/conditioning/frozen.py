"""Encoders that others have trained, whose weights are fetched unless a checkpoint brings them."""

from __future__ import annotations

from typing import Any, Self

from torch import nn

from ldm.conditioning.base import Embedder

__all__ = ["FrozenEmbedder"]


class FrozenEmbedder(Embedder):
    """An encoder that is never trained and stays in evaluation mode.

    What it computes with is its `transformer`, whose weights a checkpoint brings or `prepare`
    loads, which asks `has_weights`.
    """

    has_weights = False

    def freeze(self) -> None:
        """Called at the end of a constructor."""
        self.requires_grad_(False)
        self.eval()
        self.register_load_state_dict_pre_hook(_note_weights)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(mode=False)


def _note_weights(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Remember that a checkpoint brings the weights, so that none need be fetched."""
    assert isinstance(module, FrozenEmbedder)
    if any(key.startswith(f"{prefix}transformer.") for key in state):
        module.has_weights = True
