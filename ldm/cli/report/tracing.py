"""A step run without memory: how many bytes live at once, and how many operations are made.

Tensors have a shape, a type and a device here, and no numbers. The program that trains runs on
them, its backward pass as well, and every storage is counted from the moment it is made to the
moment it is freed. So what autograd keeps, what gradient checkpointing makes again, the copies of
weights under autocast and what a frozen first stage needs for a moment are counted because they
are there, without a formula for each.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ldm.cli.report.replay import Event

__all__ = ["Shaped", "Trace", "shape_only"]

Operation: TypeAlias = Any  # an overload of torch's: it has no public type

_aten = torch.ops.aten
# a CPU's library brings what these read and write into a form of its own
_CONVOLUTIONS = (_aten.convolution.default, _aten.convolution_backward.default)
_MATH, _FLASH, _EFFICIENT = 0, 1, 2  # implementations of attention, as torch numbers them


class Shaped(Tensor):
    """A tensor of a device, without numbers: its shape is that of `elem`, on the meta device."""

    elem: Tensor

    @staticmethod
    def __new__(cls: type[Self], elem: Tensor, device: torch.device) -> Self:
        """Wrap a tensor on the meta device."""
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            device=device,
        )
        made.elem = elem
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # torch's own is a placeholder
        cls, func: Operation, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Outside a trace there is nothing that such a tensor could be used for."""
        raise RuntimeError(f"{func}: a tensor without numbers was used outside its trace")


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts bytes and operations of whatever runs inside, on `Shaped` tensors.

    device: what they pretend to be on.
    now, peak: bytes of the storages that live, and the most there were.
    events: what was taken and given back so far; see `ldm.cli.report.replay`.
    flops: so far, a multiplication and an addition being two.
    """

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = torch.device(device)
        self.now = self.peak = 0
        self.flops = 0.0
        self.events: list[Event] = []
        self._known: dict[int, weakref.ref[Any]] = {}
        self._names = count(1)

    def __torch_dispatch__(
        self,
        func: Operation,
        types: Any,
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation on the meta device, then count what it made."""
        kwargs = kwargs or {}
        if func is _aten._fused_sdp_choice.default:
            return self._attention(*args, **kwargs)
        if not (_is_factory(func) or _has_shaped([*args, *kwargs.values()])):
            return func(*args, **kwargs)  # of numbers: small tables, decisions
        inputs: dict[int, Tensor] = {}
        plain = [_unwrapped(each, inputs) for each in args]
        named = {name: _unwrapped(each, inputs) for name, each in kwargs.items()}
        if named.get("device") is not None or _is_factory(func):
            named["device"] = torch.device("meta")
        out = func(*plain, **named)
        self._count_operations(func, plain, named, out)
        return self._wrapped(out, inputs)

    def shaped(self, elem: Tensor) -> Tensor:
        """A tensor on the meta device as one of this trace's device, counted."""
        self._count(elem)
        return Shaped(elem, self.device)

    def _wrapped(self, out: Any, inputs: Mapping[int, Tensor]) -> Any:
        if isinstance(out, Tensor):
            known = inputs.get(id(out))  # what an operation in place returns is what it was given
            return self.shaped(out) if known is None else known
        if isinstance(out, list | tuple):
            return type(out)([self._wrapped(each, inputs) for each in out])
        return out

    def _count(self, elem: Tensor) -> None:
        """Count the storage of a tensor, unless it is known, until it is freed."""
        storage = elem.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size, name = storage.nbytes(), next(self._names)

        def freed(_: object) -> None:
            self.now -= size
            self.events.append((name, -1))
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, freed)
        self.now += size
        self.events.append((name, size))
        self.peak = max(self.peak, self.now)

    def _count_operations(
        self, func: Operation, args: list[Any], kwargs: Mapping[str, Any], out: Any
    ) -> None:
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        if func in _CONVOLUTIONS and self.device.type == "cpu":
            copies = [each.nbytes for each in _tensors([*args, out])]
            names = [next(self._names) for _ in copies]
            self.events += zip(names, copies, strict=True)
            self.events += [(name, -1) for name in names]
            self.peak = max(self.peak, self.now + sum(copies))

    def _attention(self, query: Tensor, *rest: Any, **named: Any) -> int:
        """Which attention the device would choose, of this width and type."""
        if self.device.type == "cpu":
            return _FLASH
        is_half = query.dtype in (torch.bfloat16, torch.float16)
        return _FLASH if is_half and query.shape[-1] <= 256 else _EFFICIENT


def _has_shaped(values: Iterable[Any]) -> bool:
    return any(
        isinstance(each, Shaped) or (isinstance(each, list | tuple) and _has_shaped(each))
        for each in values
    )


def _is_factory(func: Operation) -> bool:
    """Whether an operation without tensors makes one that is filled later, or with noise."""
    return func._overloadpacket in (_aten.empty, _aten.randn, _aten.rand, _aten.zeros, _aten.ones)


def _unwrapped(value: Any, inputs: dict[int, Tensor]) -> Any:
    """A value with tensors on the meta device in place of ours; these are noted by them."""
    if isinstance(value, Shaped):
        inputs[id(value.elem)] = value
        return value.elem
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, list | tuple):
        return type(value)([_unwrapped(each, inputs) for each in value])
    return value


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, list | tuple):
        return [tensor for each in values for tensor in _tensors(each)]
    return []


def shape_only(module: nn.Module, trace: Trace) -> None:
    """Have the parameters and buffers of a module on the meta device counted by a trace."""
    made: dict[int, Tensor] = {}  # shared ones stay shared

    def shaped(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            new = trace.shaped(tensor.detach())
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            made[id(tensor)] = new
        return made[id(tensor)]

    with trace:
        for part in module.modules():
            tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
            for entries in tables:
                for name, tensor in entries.items():
                    if tensor is not None:
                        entries[name] = shaped(tensor)
