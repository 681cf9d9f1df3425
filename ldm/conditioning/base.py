"""What every encoder tau_theta promises: where its output enters the denoiser, and its null."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldm.config import ConfigError
from ldm.tensor import expand_to, sent_to

__all__ = ["Embedder", "FunctionEmbedder", "Reads", "Slot"]

Slot = Literal["crossattn", "concat", "vector"]
Reads = Literal["text", "label", "layout", "neighbours", "other"]


class Embedder(nn.Module, ABC):
    """An encoder tau_theta (paper, section 3.3): one entry of a batch to one slot of the condition.

    slot: where the output enters the denoiser (`ldm.types.Conditioning`).
    slots: where it may enter, as a model's `conditioning_key` says; empty for wherever that is.
    key: name of the batch entry it reads; None leaves the choice to the model's `cond_stage_key`.
    drop_rate: share of training examples whose entry is replaced by the null value, in [0, 1);
        what classifier-free guidance needs (arXiv:2207.12598). Typical 0.1.
    embed_dim: width of the output (channels for `concat`), None when it depends on the input.
    reads: what the sampling scripts give it: "text" captions (B strings), "label" integers (B,)
        from 0 to its `null_label`, "layout" layouts (`ldm.data.layouts`), "neighbours" embeddings
        of images (B, k, D), "other" what its key says: LR_image, segmentation and masked_image
        have scripts, any other entry is for `model.sample` alone.
    """

    slot: Slot = "crossattn"
    slots: tuple[Slot, ...] = ()
    reads: Reads = "other"
    embed_dim: int | None = None

    def __init__(self, *, key: str | None = None, drop_rate: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= drop_rate < 1.0:
            raise ValueError(f"drop_rate is {drop_rate}; expected a share in [0, 1)")
        self.key = key
        self.drop_rate = drop_rate

    @abstractmethod
    def encode(self, value: Any) -> Tensor:
        """The batch entry as (B, N, D), (B, C, h, w) or (B, D), by slot."""

    def enter(self, slot: Slot) -> None:
        """Have the output enter this slot; ConfigError where it is of another form."""
        if self.slots and slot not in self.slots:
            raise ConfigError(
                f"conditioning_key: leads to the slot {slot!r}, but {type(self).__name__} gives "
                f"what enters {' or '.join(self.slots)}"
            )
        self.slot = slot

    def drop(self, value: Any, dropped: Tensor) -> Any:
        """The entry with the examples marked in `dropped` (B,) replaced by the null value.

        Nothing is zero unless an encoder says otherwise: the default is for tensors.
        """
        return torch.where(expand_to(sent_to(dropped, value.device), value), 0, value)

    def prepare(self) -> None:
        """Load what the constructor left out (a tokenizer, frozen weights), once, before any step.

        Raises ConfigError that names what is missing and how to get it.
        """


class FunctionEmbedder(Embedder):
    """Any function of a batch entry as an embedder, `torch.nn.Identity` among them.

    The function is held, not owned: a module's parameters stay where they are registered.
    """

    def __init__(self, function: Callable[[Any], Tensor], embed_dim: int | None = None) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self._function = (function,)  # in a tuple, where registration does not see a module

    @property
    def function(self) -> Callable[[Any], Tensor]:
        """What is called."""
        return self._function[0]

    def encode(self, value: Any) -> Tensor:
        """What the function returns."""
        return self.function(value)
