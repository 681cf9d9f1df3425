"""Optimizer steps that never take in what is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["SafeStep", "poison_unless_finite"]

Held = Tensor | bool


@dataclass
class _Kept:
    """A tensor that moves without an optimizer, what it was before, and who may move it as well."""

    tensor: Tensor
    old: Tensor
    held: Held | None = None  # of the optimizer that has it; None where none has


class SafeStep:
    """Holds back the step of an optimizer whose gradients are not finite.

    Weights, moments, counts of steps, averages and buffers stay what they were before the step, to
    the bit. A fused optimizer is told by a tensor of its device (`found_inf`, as by a gradient
    scaler), so that the device is not waited for; any other, and any on the CPU, finds no
    gradients. What one process of several finds, all find, since their gradients are averaged.

    The order of a step: `begin`, then for each optimizer `judge` on its gradients before they are
    clipped, then its step, then `end`.

    waits: whether the host looks at each norm; by default where it must, see above.

    norm: Euclidean norm (0-d) of the gradients that were judged last, before clipping.
    any_held: whether an optimizer's step is held back: a bool, or 1.0 or 0.0 (0-d) on the device.
    is_forced: set it to hold the steps back, whatever their gradients.
    """

    def __init__(self, *, waits: bool | None = None) -> None:
        self.waits = waits
        self.is_forced = False
        self.norm: Tensor | None = None
        self.any_held: Held = False
        self._held: list[Held] = []
        self._kept: dict[int, _Kept] = {}
        self._model: nn.Module | None = None
        self._modules: list[nn.Module] = []  # of the model, those that have what `begin` remembers

    @torch.no_grad()
    def begin(self, model: nn.Module) -> None:
        """Remember what a step moves beside the optimizers: statistics, codebooks, histories."""
        self.norm, self.any_held, self._held = None, False, []
        before, self._kept = self._kept, {}
        if self._model is not model:  # looking through all of them takes long
            self._model = model
            self._modules = [
                module for module in model.modules() if next(_tensors(module), None) is not None
            ]
        learning = (module for module in self._modules if module.training)
        for tensor in (tensor for module in learning for tensor in _tensors(module)):
            kept = before.get(id(tensor))
            if kept is None or kept.tensor is not tensor or kept.old.device != tensor.device:
                self._kept[id(tensor)] = _Kept(tensor, tensor.detach().clone())
            else:  # in the memory of the step before
                kept.old.copy_(tensor)
                kept.held = None
                self._kept[id(tensor)] = kept

    def judge(self, optimizer: Optimizer) -> Tensor:
        """Find out whether gradients, averaged over ranks, are finite; returns their norm, 0-d.

        A norm that overflows counts as not finite.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        held: Held
        if self.is_forced or self._must_wait(optimizer, norm):
            held = self.is_forced or not math.isfinite(norm)
            for parameter in parameters if held else ():
                parameter.grad = None
        else:
            held = (~norm.isfinite()).float()
            optimizer.found_inf = held  # type: ignore[attr-defined]
        for parameter in parameters:
            if id(parameter) in self._kept:
                self._kept[id(parameter)].held = held
        self.norm, self.any_held = norm, _either(self.any_held, held)
        self._held.append(held)
        return norm

    def held_by(self, place: int) -> Held:
        """Whether the optimizer that was judged first (0), second, ... does not move, see above."""
        return self._held[place] if place < len(self._held) else False

    @torch.no_grad()
    def end(self) -> None:
        """Where a step was held back, give what moved beside it its old values again."""
        for kept in self._kept.values():
            held = self.any_held if kept.held is None else kept.held
            if isinstance(held, Tensor):
                kept.tensor.copy_(torch.where(held > 0, kept.old, kept.tensor))
            elif held:
                kept.tensor.copy_(kept.old)

    def _must_wait(self, optimizer: Optimizer, norm: Tensor) -> bool:
        if not getattr(optimizer, "_step_supports_amp_scaling", False):
            return True
        return norm.device.type == "cpu" if self.waits is None else self.waits


@torch.no_grad()
def poison_unless_finite(parameters: Iterable[Tensor], loss: Tensor) -> None:
    """Make a gradient NaN where the loss (0-d) is not finite; leave all to the bit otherwise.

    For gradients that are not averaged over ranks yet: then all ranks learn of it.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients:
        smallest = min(gradients, key=lambda gradient: gradient.numel())
        smallest.mul_(torch.where(loss.detach().isfinite(), 1.0, math.nan))


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """What moves without an optimizer: buffers that are saved, and codebooks that are restarted."""
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            yield buffer
    if hasattr(module, "end_step"):
        yield from module.parameters()


def _either(first: Held, second: Held) -> Held:
    if first is True or second is True:
        return True
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.maximum(first, second)
    return first if isinstance(first, Tensor) else second
