"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["EMA"]


class EMA(nn.Module):
    """A network whose weights are the running average of another's.

    After update n (counted from 1) average <- d * average + (1 - d) * live, with the published
    warm-up d = min(decay, (1 + n) / (10 + n)), so that the first weights are soon forgotten.

    model: what is averaged; `module` is its averaged copy in float32, frozen and in eval mode,
    to be used in its place. Parameters that do not require gradients are copied once; buffers
    follow the live ones.
    decay: d in the long run.  use_num_updates: false leaves the warm-up out.
    The state dict holds `module.*` and the scalars `decay` and `num_updates`, as published.
    """

    decay: Tensor
    num_updates: Tensor

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.9999,
        use_num_updates: bool = True,
        *,
        use_num_upates: bool | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay={decay}: an average needs a decay between 0 and 1")
        if use_num_upates is not None:  # published: the argument's name was misspelt
            use_num_updates = use_num_upates
        self.module = copy.deepcopy(model).float().eval().requires_grad_(False)
        # published: -1 stands for no warm-up
        updates = 0 if use_num_updates else -1
        self.register_buffer("decay", torch.tensor(decay, dtype=torch.float32))
        self.register_buffer("num_updates", torch.tensor(updates, dtype=torch.int32))
        # the same two as Python numbers: reading a tensor of the device would wait for it
        self._decay, self._updates = decay, updates
        self._averaged = [name for name, p in model.named_parameters() if p.requires_grad]
        self.register_load_state_dict_post_hook(_read_scalars)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self, model: nn.Module, held: Tensor | bool = False) -> None:
        """Take in the live weights, once per optimizer step.

        held: of a step that is held back, after which the average stays as it was, to the bit; 1.0
            or 0.0 (0-d) on the device is not waited for.
        """
        if isinstance(held, Tensor):
            self._update_unless(held, model)
            return
        if held:
            return
        decay = self._decay
        if self._updates >= 0:
            self._updates += 1
            self.num_updates.add_(1)
            decay = min(decay, (1 + self._updates) / (10 + self._updates))
        averages, live = self._pairs(model)
        torch._foreach_lerp_(averages, live, 1.0 - decay)
        for own, followed in self._buffer_pairs(model):
            own.copy_(followed)

    def _update_unless(self, held: Tensor, model: nn.Module) -> None:
        """The same, but for rounding, where the device alone knows whether there is an update."""
        rate = self.decay.new_full((), 1.0 - self._decay)
        if self._updates >= 0:  # counted by the device
            self.num_updates.add_((1 - held).to(self.num_updates))
            rate = torch.maximum(rate, 9 / (10 + self.num_updates))
        averages, live = self._pairs(model)
        # the average minus rate times what it is above the live weights, in one kernel that
        # writes nothing where it is told so: a step of gradient descent with decay 1
        torch._fused_sgd_(
            averages,
            live,
            [],
            weight_decay=1.0,
            momentum=0.0,
            lr=rate,
            dampening=0.0,
            nesterov=False,
            maximize=True,
            is_first_step=False,
            found_inf=held,
        )
        for own, followed in self._buffer_pairs(model):
            own.copy_(torch.where(held > 0, own, followed))

    def _buffer_pairs(self, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        buffers = dict(model.named_buffers())
        return ((own, buffers[name]) for name, own in self.module.named_buffers())

    forward = update  # published: calling the average updates it

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Give a network the averaged weights."""
        for average, parameter in zip(*self._pairs(model, cast=False), strict=True):
            parameter.copy_(average)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """The network with averaged weights inside the context, with its own after it."""
        live = [parameter.detach().clone() for parameter in self._pairs(model, cast=False)[1]]
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self._pairs(model, cast=False)[1], live, strict=True):
                    parameter.copy_(value)

    def train(self, mode: bool = True) -> EMA:
        """Stay in eval mode."""
        return super().train(False)

    def _pairs(self, model: nn.Module, *, cast: bool = True) -> tuple[list[Tensor], list[Tensor]]:
        """Averaged parameters and the live ones beside them, cast to float32 if asked."""
        averages = dict(self.module.named_parameters())
        parameters = dict(model.named_parameters())
        live: list[Tensor] = [parameters[name] for name in self._averaged]
        if cast:
            live = [parameter.float() for parameter in live]
        return [averages[name] for name in self._averaged], live


def _read_scalars(ema: EMA, _: object) -> None:
    if not ema.decay.is_meta:
        ema._decay, ema._updates = float(ema.decay), int(ema.num_updates)
