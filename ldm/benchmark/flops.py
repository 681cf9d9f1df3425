"""Model FLOPs of a configuration, and the most that this machine does per second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ldm.benchmark.configuration import (
    Block,
    accept_random_lpips,
    denoising,
    is_first_stage,
    without_weights,
)
from ldm.benchmark.setting import Setting
from ldm.config import instantiate_model

__all__ = ["ceiling", "flops_per_image"]


def flops_per_image(block: Block, *, with_discriminator: bool) -> float:
    """Model FLOPs of a training step for one image, a multiplication and an addition being two.

    The passes that mathematics asks for, of the network as its configuration says, however it is
    computed: a pass that is made again counts once. A network that learns costs its forward pass
    three times. Of a first stage, LPIPS sees two images and is differentiated for one; the
    discriminator sees two, learns from both and is differentiated for one.
    """
    model = without_weights(block)
    if not is_first_stage(model):
        given, shapes = denoising(block)
        with torch.device("meta"):
            model = instantiate_model(given)
        z, batch = shapes.batch(1, "meta")
        cond, t = model.conditioner(batch), torch.zeros(1, device="meta")
        return 3 * _count(lambda: model.model(z, t, cond))
    shape = block["params"]["ddconfig"]
    size = (1, shape["in_channels"], shape["resolution"], shape["resolution"])
    image = torch.empty(size, device="meta")
    total = 3 * _count(lambda: model.autoencode(image, None))
    if model.loss.perceptual_loss is not None:
        accept_random_lpips(model.loss)
        total += 3 * _count(lambda: model.loss.perceptual_loss(image, image)) / 2
    if with_discriminator:
        total += 5 * _count(lambda: model.loss.judge(image))
    return total


def _count(forward: Callable[[], Any]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward()
    return float(counter.get_total_flops())


# Linux adds the time of threads that run elsewhere at each tick, a few ms: calls of several threads
# are timed together
_CALLS_OF_THREADS = 10

# (channels, height and width) of the convolutions that the ceiling is taken from
_CONVOLUTIONS = ((128, 64), (256, 32), (512, 32))


def ceiling(setting: Setting, rounds: int = 5) -> float:
    """FLOP/s of the fastest of a few large convolutions and one matrix product.

    Per busy second (`Elapsed`), as the utilisation of a step is: threads add nothing to either.
    Convolutions are the larger part of these networks, and on some processors matrix products
    reach less than half of what convolutions do.
    """
    dtype = torch.bfloat16 if setting.precision == "bf16" else torch.float32
    batch = 64 if setting.is_cuda else 1
    best = 0.0
    for channels, side in _CONVOLUTIONS:
        x = torch.randn(batch, channels, side, side, device=setting.device).to(dtype)
        weight = torch.randn(channels, channels, 3, 3, device=setting.device).to(dtype)
        flops = 2 * 9 * x.numel() * channels
        for layout in (torch.contiguous_format, torch.channels_last):
            operands = (x.to(memory_format=layout), weight.to(memory_format=layout))
            best = max(best, flops / _fastest(_convolve, operands, setting, rounds))
    size = 8192 if setting.is_cuda else 1024
    square = torch.randn(size, size, device=setting.device).to(dtype)
    return max(best, 2 * size**3 / _fastest(torch.mm, (square, square), setting, rounds))


def _convolve(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1)


def _fastest(
    function: Callable[[Tensor, Tensor], Tensor],
    operands: tuple[Tensor, Tensor],
    setting: Setting,
    rounds: int,
) -> float:
    """Busy seconds of the fastest of a few calls: whatever disturbs one only makes it slower."""
    calls = 1 if setting.is_cuda or setting.num_threads == 1 else _CALLS_OF_THREADS

    def repeat() -> None:
        for _ in range(calls):
            function(*operands)

    seconds = [setting.timed(repeat).busy for _ in range(rounds + 1)]
    return min(seconds[1:]) / calls
