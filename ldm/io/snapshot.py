"""A copy of a checkpoint in the host's memory, which training can no longer change."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["is_on_device", "on_host", "tensors"]


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors(each)


def is_on_device(checkpoint: Mapping[str, Any]) -> bool:
    """Whether any tensor of a checkpoint is on an accelerator."""
    return any(each.device.type not in ("cpu", "meta") for each in tensors(checkpoint))


def on_host(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """A deep copy with all tensors in the host's memory, pinned where they come from CUDA.

    Tensors that share memory share it in the copy, so that saving it writes the same file. The
    device has been waited for.
    """
    storages: dict[int, Tensor] = {}
    plain = [each for each in tensors(checkpoint) if _is_plain(each)]
    copies: dict[int, Any] = {id(each): _copied(each, storages) for each in plain}
    if any(each.is_cuda for each in plain):
        torch.cuda.synchronize()
    return copy.deepcopy(checkpoint, copies)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is no more than a view of a storage; others are left to `deepcopy`."""
    is_strided = type(tensor) is Tensor and tensor.layout is torch.strided
    return is_strided and not (tensor.is_meta or tensor.is_conj() or tensor.is_neg())


def _copied(tensor: Tensor, storages: dict[int, Tensor]) -> Tensor:
    """The same view of a copied storage."""
    storage = tensor.untyped_storage()
    if storage._cdata not in storages:
        source = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
        host = _empty(storage.nbytes(), is_pinned=tensor.is_cuda)
        storages[storage._cdata] = host.copy_(source, non_blocking=tensor.is_cuda)
    host = storages[storage._cdata]
    view = torch.empty(0, dtype=tensor.dtype)
    return view.set_(
        host.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )


def _empty(size: int, *, is_pinned: bool) -> Tensor:
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=is_pinned)
    except RuntimeError:  # the system pins no more; copying takes longer then
        return torch.empty(size, dtype=torch.uint8)
