"""What training and sampling take: bytes at their peak and operations, of a step that is traced."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.cli.report.batches import shaped_batch
from ldm.cli.report.replay import Event, Heap, Live, played
from ldm.cli.report.tracing import Trace, shape_only
from ldm.diffusion.draws import KeyedDraws
from ldm.losses.autoencoder import FirstStageLoss
from ldm.models.classifier import LatentClassifier
from ldm.models.diffusion.ddpm import DDPM
from ldm.models.first_stage_module import FirstStageModule
from ldm.models.first_stage_step import (
    MicroBatch,
    discriminator_gradients,
    generator_gradients,
    shared_gradients,
)
from ldm.models.one_optimizer import ADAMW
from ldm.models.optim import build_optimizer
from ldm.types import Conditioning

__all__ = ["Costs", "Plan", "learned", "optimizer_bytes", "training_costs"]

# share of activations that a CPU's heap loses beyond the replay: fitted to docs/preflight.md's five
_LOST = 0.25
_TRACED = 2  # micro-batches after which one more adds what the last one added


@dataclass(frozen=True)
class Plan:
    """How a model is to be trained: images per device and batch, batches per step, on what."""

    batch_size: int
    accumulate: int = 1
    precision: str = "32-true"
    device: str = "cpu"

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that a training step runs in."""
        types = {"bf16": torch.bfloat16, "16": torch.float16}
        kind, _, how = str(self.precision).partition("-")
        if how in ("", "mixed") and kind in types:
            return torch.autocast(self.device, types[kind])
        return nullcontext()


@dataclass(frozen=True)
class Costs:
    """Bytes and operations of a training.

    weights: parameters and buffers, averages among them.  optimizer: its state.
    gradients: of what learns.  peak: most bytes at once, all of the above and what a step adds.
    sampling: most bytes at once while the training's pictures are drawn; None for first stages.
    flops: of an optimizer step of one device.
    """

    weights: int
    optimizer: int
    gradients: int
    peak: int
    sampling: int | None
    flops: float


def training_costs(model: Any, sample: Mapping[str, Any], plan: Plan, pictures: int) -> Costs:
    """Trace a step of a model on the meta device, which is not to be used afterwards.

    sample: of its training set.  pictures: how many are drawn at once while it trains.
    Raises whatever the step raises that looks at numbers.
    """
    model.train()
    if "true" in plan.precision and plan.precision != "32-true":
        model.to(torch.bfloat16 if "bf16" in plan.precision else torch.float16)
    accept_any_lpips(model)
    trace = Trace(plan.device)
    shape_only(model, trace)
    weights, parameters = trace.now, learned(model)
    state = optimizer_bytes(model)
    gradients = sum(p.nbytes for p in parameters)
    peak, flops = _peak_of_training(model, sample, plan, trace)
    if plan.device == "cpu":
        peak += round(_LOST * max(0, peak - state - gradients))
    sampling = None
    if isinstance(model, DDPM):
        sampling = _peak_of_drawing(model, sample, plan, trace, pictures)
    return Costs(weights, state, gradients, weights + peak, sampling, flops)


def accept_any_lpips(model: Any) -> None:
    """Have LPIPS run on the weights it has: its cost is the same."""
    lpips = getattr(getattr(model, "loss", None), "perceptual_loss", None)
    if isinstance(lpips, nn.Module):
        lpips.load_state_dict(lpips.state_dict(), assign=True)


def learned(model: Any) -> list[nn.Parameter]:
    """Everything that an optimizer moves."""
    if isinstance(model, FirstStageModule):
        own = model.generator_parameters()
        both = [*own, *model.loss.discriminator.parameters()] if _has_game(model) else own
        return [p for p in both if p.requires_grad]
    return [p for p in model.learned_parameters() if p.requires_grad]


def _has_game(model: FirstStageModule) -> bool:
    return isinstance(model.loss, FirstStageLoss)


def optimizer_bytes(model: Any) -> int:
    """Bytes of the optimizer's state."""
    return round(sum(_state_ratios(model)) * sum(p.nbytes for p in learned(model)))


def _state_ratios(model: Any) -> list[float]:
    """Size of each piece of an optimizer's state beside its parameter, by those of a small one."""
    is_first_stage = isinstance(model, FirstStageModule)
    config = model.options["optimizer_config"] if is_first_stage else model.optimizer_config
    small = nn.Parameter(torch.zeros(64, 64))
    small.grad = torch.zeros_like(small)
    optimizer = build_optimizer([small], 1e-6, config or ADAMW)
    optimizer.step()
    state = optimizer.state[small].values()
    return [
        each.nbytes / small.nbytes
        for each in state
        if isinstance(each, Tensor) and each.numel() > 1
    ]


def _peak_of_training(
    model: Any, sample: Mapping[str, Any], plan: Plan, trace: Trace
) -> tuple[int, float]:
    """Most bytes beside the weights, and operations of a step.

    Of two steps, the optimizer's state made after the first.
    """
    states = [round(p.nbytes * ratio) for p in learned(model) for ratio in _state_ratios(model)]
    holds_all = isinstance(model, FirstStageModule)  # micro-batches, until its step is complete
    most = min(plan.accumulate, _TRACED) if holds_all else 1
    adds = plan.accumulate > 1 and not holds_all
    peaks, flops = [], 0.0
    for count in range(1, most + 1):
        before = trace.flops
        events, backward = _step_events(model, sample, plan, trace, count)
        flops = (trace.flops - before) * plan.accumulate / count
        memory = Heap() if plan.device == "cpu" else Live()
        peaks.append(played(events, states, backward, memory, accumulates=adds))
    more = (peaks[-1] - peaks[-2]) * (plan.accumulate - most) if len(peaks) > 1 else 0
    return peaks[-1] + more, flops


def _step_events(
    model: Any, sample: Mapping[str, Any], plan: Plan, trace: Trace, count: int
) -> tuple[list[Event], int]:
    """What a step of so many micro-batches takes and gives back, and where gradients are dropped.

    Lightning drops those of the step before between the first forward and backward pass; a first
    stage drops its own at the end of a step.
    """
    for parameter in learned(model):
        parameter.grad = None
    trace.events, backward = [], 0
    with trace:
        if isinstance(model, FirstStageModule):
            with plan.autocast():
                _first_stage_step(model, sample, plan, trace, count)
        else:
            for _ in range(count):
                with plan.autocast():
                    loss = _loss(model, sample, plan, trace)
                backward = backward or len(trace.events)
                torch.autograd.backward(loss)
                del loss
    events, trace.events = trace.events, []
    for parameter in learned(model):
        parameter.grad = None
    trace.events = []
    return events, backward


def _loss(model: Any, sample: Mapping[str, Any], plan: Plan, trace: Trace) -> Tensor:
    """The loss of a batch, as `training_step` takes it."""
    batch = shaped_batch(model, sample, plan.batch_size, trace)
    draws = KeyedDraws(range(plan.batch_size), 0, 0, plan.device)
    z = model.encode(model.get_input(batch), draws)
    if isinstance(model, LatentClassifier):
        t = torch.zeros(plan.batch_size, dtype=torch.int64)
        z_t = model.schedule.noised(z, torch.randn_like(z), t)
        logits = model.logits(z_t, t)
        loss: Tensor = nn.functional.cross_entropy(logits, batch[model.label_key].long())
        return loss
    cond = model.conditioner(batch)
    denoiser = model.told(model.denoiser, draws)
    terms = model.objective(denoiser, z, cond, draws=draws, logvar=model.logvar)
    return terms.total.mean()  # type: ignore[no-any-return]


def _first_stage_step(
    model: FirstStageModule, sample: Mapping[str, Any], plan: Plan, trace: Trace, count: int
) -> None:
    """Both players' gradients, once the discriminator has joined."""
    batches = []
    for index in range(count):
        images = model.get_input(shaped_batch(model, sample, plan.batch_size, trace))
        first = index * plan.batch_size
        keys = range(first, first + plan.batch_size)
        batches.append(MicroBatch(images, KeyedDraws(keys, 0, 0, plan.device)))
    step = model.loss.disc_start + getattr(model.loss, "disc_warmup", 0)
    if model.options["gan_forward"] == "published":
        generator_gradients(model, batches, step=step)
        discriminator_gradients(model, batches, step=step)
    else:
        shared_gradients(model, batches, step=step)


@torch.no_grad()
def _peak_of_drawing(
    model: DDPM, sample: Mapping[str, Any], plan: Plan, trace: Trace, count: int
) -> int:
    """Most bytes while pictures are drawn with guidance: one call of the network, then decoding."""
    model.eval()
    trace.peak = trace.now
    with trace, plan.autocast():
        batch = shaped_batch(model, sample, count, trace)
        size = model.encode(model.get_input(batch)).shape[1:]
        cond = model.conditioner(batch)
        halves = 1
        if cond is not None:
            halves = 2
            cond = Conditioning(**{k: torch.cat([v, v]) for k, v in cond.slots().items()})
        x = torch.empty(count * halves, *size)
        t = torch.zeros(count * halves, dtype=torch.int64)
        model.ema_denoiser(x, t, cond)
        model.decode(torch.empty(count, *size))
    return trace.peak
