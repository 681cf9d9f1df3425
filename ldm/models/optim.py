"""Optimizers, learning rates and what happens between a gradient and a step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ldm.config import ConfigError, instantiate_from_config, locate, to_plain
from ldm.ranks import mean_over_ranks, world_size

__all__ = [
    "average_gradients",
    "build_optimizer",
    "build_schedule",
    "clip_gradients",
    "gradient_norm",
    "scaled_learning_rate",
]

BUCKET_ELEMENTS = 2**24  # 64 MiB of float32: a few large messages instead of hundreds of small ones


def build_optimizer(
    parameters: Iterable[Tensor], lr: float, config: Mapping[str, Any], *, fused: bool = True
) -> Optimizer:
    """The optimizer that a configuration names, over these parameters.

    config: `target` (a class of torch.optim) and `params`, without `lr`.
    fused: use the fused implementation where the class has one and `params` name no other: one
        kernel instead of one per parameter.

    Raises ConfigError for parameters that the class does not take, and for what is no optimizer.
    """
    config = to_plain(config)
    given = config.get("params") or {}
    if "lr" in given:
        raise ConfigError(
            f"optimizer_config.params.lr: {given['lr']}; the rate of a training is "
            "model.learning_rate, or model.base_learning_rate, which is scaled by the batch"
        )
    params = {"lr": lr, **given}
    takes_fused = "fused" in inspect.signature(locate(config["target"])).parameters
    if fused and takes_fused and not {"fused", "foreach", "differentiable"} & params.keys():
        params["fused"] = True
    optimizer = instantiate_from_config(
        {"target": config["target"], "params": params},
        path="optimizer_config",
        given={"params": [p for p in parameters if p.requires_grad]},
    )
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"optimizer_config: {config['target']} is not a torch optimizer")
    return optimizer


def build_schedule(optimizer: Optimizer, factor: Callable[[int], float]) -> dict[str, Any]:
    """A schedule as Lightning takes it: `factor(step)` on the rate, once per optimizer step."""
    return {"scheduler": LambdaLR(optimizer, lr_lambda=factor), "interval": "step", "frequency": 1}


def scaled_learning_rate(
    base: float, *, batch_size: int, devices: int, accumulate: int
) -> tuple[float, str]:
    """The rate that the published command line trains with, and the equation that explains it.

    base: rate per example.  batch_size: examples per device and batch.
    devices: number of processes.  accumulate: batches per optimizer step.
    """
    rate = accumulate * devices * batch_size * base
    equation = (
        f"lr = {accumulate} (accumulate_grad_batches) x {devices} (devices) x "
        f"{batch_size} (batch_size) x {base:g} (base_learning_rate) = {rate:g}"
    )
    return rate, equation


def clip_gradients(
    parameters: Iterable[Tensor],
    value: float | None,
    algorithm: Literal["norm", "value"] = "norm",
    *,
    norm: Tensor | None = None,
) -> Tensor | None:
    """Limit gradients in place; None or 0 leaves them.

    `norm`: their joint Euclidean norm is at most `value`.  `value`: each element is in
    [-value, value].
    norm: their joint norm (0-d), where it is at hand.
    Returns the joint norm of before (0-d) where it was needed, otherwise None.

    Raises ConfigError for a value below 0, which would turn gradients round, and for another
    algorithm.
    """
    if not value:
        return None
    if value < 0:
        raise ConfigError(f"gradient_clip_val={value}: expected 0 or more")
    if algorithm == "norm":
        if norm is None:
            return torch.nn.utils.clip_grad_norm_(parameters, value)
        torch.nn.utils.clip_grads_with_norm_(parameters, value, norm)
        return norm
    if algorithm == "value":
        torch.nn.utils.clip_grad_value_(parameters, value)
        return None
    raise ConfigError(f"gradient_clip_algorithm={algorithm!r}: expected 'norm' or 'value'")


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Joint Euclidean norm of the gradients, 0-d, without waiting for the device."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over ranks, in place; every rank calls this.

    Parameters without a gradient are passed over: they are the same on every rank.
    """
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    for bucket in _buckets(gradients):
        mean = mean_over_ranks(torch.cat([gradient.flatten() for gradient in bucket]))
        parts = torch.split(mean, [gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterable[list[Tensor]]:
    bucket: list[Tensor] = []
    elements = 0
    for gradient in gradients:
        same_kind = not bucket or gradient.dtype == bucket[0].dtype
        if bucket and (elements + gradient.numel() > BUCKET_ELEMENTS or not same_kind):
            yield bucket
            bucket, elements = [], 0
        bucket.append(gradient)
        elements += gradient.numel()
    if bucket:
        yield bucket
