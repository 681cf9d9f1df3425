"""The memory of a training step beside weights and optimizer, found without running it.

The step runs on tensors that have shapes, types and devices but no numbers, so it takes a second
and no memory, whatever its size. The kernels that it chooses are those of the device it is told.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from ldm.diffusion.draws import KeyedDraws
from ldm.models.first_stage_module import FirstStageModule
from ldm.models.first_stage_step import MicroBatch, shared_gradients

__all__ = [
    "StepMemory",
    "autocast_dtype",
    "checkpointed",
    "is_checkpointed",
    "measured",
    "saved_bytes",
    "step_memory",
    "traced",
]

Batch = Mapping[str, Any]

_LAST = 2**62  # a step at which every part of a loss has joined
_SWITCHES = ("use_checkpoint", "checkpoint")  # attributes of layers that recompute


@dataclass(frozen=True)
class StepMemory:
    """Bytes of what forward and backward passes of an optimizer step make, at one time at most.

    saved: kept for the backward pass; a network that recomputes keeps little.
    peak: all of it, with gradients of weights, copies of weights in another precision, what is
        recomputed and what is needed in passing. Weights, averages and the optimizer's state are
        not in it.
    """

    saved: int
    peak: int


def saved_bytes(model: Any, batch: Batch, **how: Any) -> int:
    """Bytes that a training step on one batch saves for its backward pass; see `step_memory`."""
    return step_memory(model, [batch], **how).saved


def step_memory(
    model: Any,
    batches: Sequence[Batch],
    *,
    device: torch.device | str = "cpu",
    precision: str = "32-true",
    checkpointing: bool | None = None,
    trains: bool = True,
) -> StepMemory:
    """What an optimizer step of a model on these micro-batches takes.

    model: a diffusion model, a classifier or a first stage with a loss, on any device, the meta
        device too; it is as it was afterwards. A compiled network counts as one that is not.
    batches: as the data module's loader gives them; only shapes count, and the text of captions.
    device: where the step would run. A GPU's kernels can be told on a machine that has one.
    precision: Lightning's name, see `autocast_dtype`.
    checkpointing: of the U-Net's blocks; None for what the model has.
    trains: false for a step of validation, without gradients.
    Raises RuntimeError, or whatever the model does, when its step cannot be followed.
    """
    device, dtype = torch.device(device), autocast_dtype(precision)
    with _tracing(model, device) as mode:
        told = [{k: _sent(v, mode, device) for k, v in batch.items()} for batch in batches]
        is_set = checkpointing is not None
        # lists are of layouts, which encoders read as arrays; others need not pay for that
        has_lists = any(isinstance(each, list) for batch in batches for each in batch.values())
        arrays = _HostArrays() if has_lists else nullcontext()
        with checkpointed(model, bool(checkpointing)) if is_set else nullcontext(), mode, arrays:
            function = _gradients if trains else _evaluation
            return measured(model, lambda: function(model, told, device, dtype))


def traced(model: nn.Module, function: Callable[[], object], device: torch.device) -> StepMemory:
    """What a function of a model takes, found on tensors without numbers.

    model: see `step_memory`.  device: where the function runs.
    """
    with _tracing(model, device) as mode, mode, _HostArrays():
        return measured(model, function)


@contextmanager
def _tracing(model: nn.Module, device: torch.device) -> Iterator[FakeTensorMode]:
    """Have a model be without numbers inside."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of logging without a trainer
        if any(module._compiled_call_impl is not None for module in model.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # seconds to import
        stack.enter_context(_without_numbers(model, mode, device))
        yield mode


def measured(model: nn.Module, step: Callable[[], object]) -> StepMemory:
    """What a step takes that is run here and now, on tensors of any kind.

    model: its weights and buffers do not count.  step: forward and backward passes.
    """
    given = [*model.parameters(), *model.buffers()]
    saved, live = _Saved(given), _Live(given)
    with saved_tensors_hooks(saved.pack, _Held.unpack), live:
        step()
    return StepMemory(saved.peak, live.peak)


def autocast_dtype(precision: str) -> torch.dtype | None:
    """The type of products in Lightning's precision of a name; None for that of the weights."""
    return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)


def is_checkpointed(model: nn.Module) -> bool | None:
    """Whether blocks of a model recompute their activations; None where none can."""
    found = [on for _, _, on in _switches(model)]
    return any(found) if found else None


@contextmanager
def checkpointed(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Have the blocks of a model that can recompute do so, or not, inside."""
    before = list(_switches(model))
    for module, name, _ in before:
        setattr(module, name, enabled)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _switches(model: nn.Module) -> Iterator[tuple[nn.Module, str, bool]]:
    for module in model.modules():
        for name in _SWITCHES:
            if isinstance(value := module.__dict__.get(name), bool):
                yield module, name, value


def _gradients(
    model: Any, batches: Sequence[Batch], device: torch.device, dtype: torch.dtype | None
) -> None:
    """Forward and backward passes of one optimizer step, in autocast as the trainer has it."""
    model.train()
    if isinstance(model, FirstStageModule):
        with _autocast(device, dtype):
            images = [model.get_input(batch) for batch in batches]
            parts = [MicroBatch(x, KeyedDraws(range(len(x)), 0, 0, device)) for x in images]
            shared_gradients(model, parts, step=_LAST)
        return
    for index, batch in enumerate(batches):
        with _autocast(device, dtype):
            loss = model.training_step(batch, index)
        loss.backward()
        del loss


def _evaluation(
    model: Any, batches: Sequence[Batch], device: torch.device, dtype: torch.dtype | None
) -> None:
    """Forward passes as validation makes them, of as much as takes memory."""
    model.eval()
    with torch.no_grad(), _autocast(device, dtype):
        for index, batch in enumerate(batches):
            if isinstance(model, FirstStageModule):
                images = model.get_input(batch)
                made = model.autoencode(images, None).reconstruction
                model.loss.reconstruction(images, made)
                model.loss.judge(made)
            else:
                model.training_step(batch, index)


def _autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


@contextmanager
def _without_numbers(model: Any, mode: FakeTensorMode, device: torch.device) -> Iterator[None]:
    """Have a model's weights and buffers be on a device, without memory, inside."""
    made: dict[int, Any] = {}
    before = [(place, name, place[name]) for place, name in _places(model)]
    was_training = {module: module.training for module in model.modules()}
    told = {"_device": device, "_trainer": None}  # where Lightning's modules believe to be
    for place, name, value in before:
        if isinstance(value, Tensor):
            if id(value) not in made:
                made[id(value)] = _described(value, mode, device)
            place[name] = made[id(value)]
        else:
            place[name] = told[name]
    try:
        yield
    finally:
        for place, name, value in before:
            place[name] = value
        for module, training in was_training.items():
            module.training = training


def _places(model: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Where a model keeps its tensors, its device and its trainer: a dictionary and a key."""
    for module in model.modules():
        for place in (module._parameters, module._buffers):
            yield from ((place, name) for name, tensor in place.items() if tensor is not None)
        yield from (
            (vars(module), name) for name in ("_device", "_trainer") if name in vars(module)
        )


def _described(value: Any, mode: FakeTensorMode, device: torch.device) -> Any:
    """A tensor without numbers in place of one; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    meta = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    made: Tensor = FakeTensor(mode, meta, device)
    return nn.Parameter(made, value.requires_grad) if isinstance(value, nn.Parameter) else made


def _sent(entry: Any, mode: FakeTensorMode, device: torch.device) -> Any:
    """An entry of a batch where the model reads it; layouts on the CPU are looked at, and stay."""
    if isinstance(entry, list) and device.type == "cpu":
        return entry
    return tree_map(lambda value: _described(value, mode, device), entry)


class _HostArrays(TorchFunctionMode):
    """Gives a program that reads an array the numbers where they are there, and else ones."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.numpy:
            (tensor,) = args
            if not isinstance(tensor, FakeTensor):
                with _disable_current_modes():
                    return tensor.numpy()
            return np.ones(tuple(tensor.shape))
        return func(*args, **(kwargs or {}))


def _zero(dtype: torch.dtype) -> bool | int | float:
    """What a program gets that reads a number which is not there."""
    return False if dtype == torch.bool else 0.0 if dtype.is_floating_point else 0


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the memory that operations make, as long as it lives.

    given: tensors that do not count.
    """

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = weakref.WeakKeyDictionary({t.untyped_storage(): 0 for t in given})

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return _zero(args[0].dtype)
        made = func(*args, **(kwargs or {}))
        for value in (made,) if isinstance(made, Tensor) else tree_leaves(made):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = self._known[storage] = storage.nbytes()
        weakref.finalize(storage, self._forget, size).atexit = False
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, size: int) -> None:
        self.now -= size


class _Saved:
    """Adds up the memory that is saved for a backward pass, as long as it is."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        self.now = self.peak = 0
        self._given = {t.untyped_storage()._cdata for t in given}
        self._holders: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> _Held:
        return _Held(self, tensor)

    def take(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        self._holders[key] = self._holders.get(key, 0) + 1
        if self._holders[key] == 1 and key not in self._given:
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def drop(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]
            self.now -= 0 if key in self._given else storage.nbytes()


class _Held:
    """A saved tensor, which says when it is let go."""

    def __init__(self, ledger: _Saved, tensor: Tensor) -> None:
        self.ledger, self.tensor = ledger, tensor
        ledger.take(tensor.untyped_storage())

    def unpack(self) -> Tensor:
        return self.tensor

    def __del__(self) -> None:
        self.ledger.drop(self.tensor.untyped_storage())
