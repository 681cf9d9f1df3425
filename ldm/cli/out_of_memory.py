"""What a user can change where memory ran out, how much it would help, and the words to add."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from ldm.activations import is_checkpointed, step_memory, traced
from ldm.callbacks.out_of_memory import RoomToSave
from ldm.cli.running import autocast
from ldm.config import locate
from ldm.config.signature import signature_of
from ldm.data.module import Keyed, collate
from ldm.log import log
from ldm.memory import is_out_of_memory, release_memory
from ldm.models.first_stage_module import FirstStageModule

if TYPE_CHECKING:
    from ldm.cli.sampling.job import Job

__all__ = [
    "OutOfMemory",
    "Remedy",
    "advised_drawing",
    "advised_training",
    "drawing_remedies",
    "smaller_batch",
    "training_remedies",
]

_GIB = 2**30
_HALVES = ("bf16-mixed", "16-mixed", "bf16-true", "16-true")


class OutOfMemory(SystemExit):
    """Memory ran out, and the user has been told what would help; the process ends with code 1."""

    def __init__(self) -> None:
        super().__init__(1)


@dataclass(frozen=True)
class Remedy:
    """Words to add to the command line, and the bytes that they save; None where that is unknown.

    price: what else they change.
    """

    words: str
    saves: int | None
    price: str

    def __str__(self) -> str:
        """One line."""
        amount = "" if self.saves is None else f"about {self.saves / _GIB:.2g} GiB less; "
        return f"  {self.words}  ({amount}{self.price})"


@contextmanager
def advised_training(
    trainer: Any, model: Any, data: Any, block: Mapping[str, Any], *, is_debugged: bool = False
) -> Iterator[None]:
    """Have a training that runs out of memory inside end with one error that says what would help.

    block: the `model:` block of the configuration.  is_debugged: raise the error itself after it.
    Raises OutOfMemory.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = _reason(error)
        if is_debugged:
            _report_training(trainer, model, data, block, reason)
            raise
        release_memory(error)
    else:
        return
    # out here the error is gone, and what it held with it
    _report_training(trainer, model, data, block, reason)
    raise OutOfMemory


def _report_training(
    trainer: Any, model: Any, data: Any, block: Mapping[str, Any], reason: str
) -> None:
    phases = [call.phase for call in trainer.callbacks if isinstance(call, RoomToSave)]
    phase = next((phase for phase in phases if phase), "training")
    remedies = training_remedies(
        model,
        data,
        block,
        accumulate=getattr(model, "accumulate_grad_batches", trainer.accumulate_grad_batches),
        precision=str(trainer.precision),
        device=trainer.strategy.root_device,
        trains=phase == "training",
    )
    _report(f"{phase}, at step {trainer.global_step}", reason, remedies)


def _report(where: str, reason: str, remedies: list[Remedy]) -> None:
    lines = [f"error: out of memory in {where}: {reason}"]
    if remedies:
        lines.append("one of these would help; add it to the command line (estimates, per device):")
        lines += map(str, remedies)
    else:
        lines.append("nothing is left that would help on this device: take a smaller model")
    log.error("%s", "\n".join(lines))


def training_remedies(
    model: Any,
    data: Any,
    block: Mapping[str, Any],
    *,
    accumulate: int,
    precision: str,
    device: torch.device,
    trains: bool = True,
) -> list[Remedy]:
    """What would help a training that needs too much memory, the best first.

    data: the data module, its data sets built.  block: the `model:` block of the configuration.
    accumulate: batches to an optimizer step.  precision: Lightning's name.
    trains: false where validation or a test ran out of memory.
    What is on already is left out, and so is what would save less than a hundredth.
    """
    example = Keyed(data.datasets["train"], data.seed)[0]

    def memory(size: int, count: int, precision: str = precision, **how: Any) -> int:
        # more than two micro-batches take no more than two
        batches = [collate([example] * size)] * (min(count, 2) if trains else 1)
        how |= {"device": device, "precision": precision, "trains": trains}
        return step_memory(model, batches, **how).peak

    size = data.batch_size
    trial = _Trial(lambda: memory(size, accumulate))
    if (smaller := smaller_batch(size, accumulate)) is not None:
        words = "data.params.batch_size={} lightning.trainer.accumulate_grad_batches={}"
        price = "the optimizer's steps stay the same"
        trial.add(words.format(*smaller), lambda: memory(*smaller), price)
    if trains and is_checkpointed(model) is False and (switch := _switch(block)) is not None:
        price = "the same gradients, one more forward pass of the network"
        trial.add(f"{switch}=true", lambda: memory(size, accumulate, checkpointing=True), price)
    if precision not in _HALVES and (half := _half_precision(model, device)) is not None:
        price = "weights stay in float32"
        trial.add(f"--precision {half}", lambda: memory(size, accumulate, half), price)
    return trial.remedies()


def smaller_batch(size: int, accumulate: int) -> tuple[int, int] | None:
    """Half a batch and twice as many to a step, or whatever keeps the step; None for one image."""
    parts = next((n for n in range(2, size + 1) if size % n == 0), None)
    return None if parts is None else (size // parts, accumulate * parts)


class _Trial:
    """Collects what would help, each with what it saves beside how things are now.

    now: bytes that are taken now.
    """

    def __init__(self, now: Callable[[], int]) -> None:
        self._estimate_now = cache(lambda: _estimate(now))  # not before something may help
        self._found: list[Remedy] = []

    def add(self, words: str, memory: Callable[[], int], price: str) -> None:
        """Add a remedy that takes so much, unless it saves less than a hundredth."""
        now = self._estimate_now()
        takes = None if now is None else _estimate(memory)
        if now is None or takes is None:
            self._found.append(Remedy(words, None, price))
        elif now - takes > now / 100:
            self._found.append(Remedy(words, now - takes, price))

    def remedies(self) -> list[Remedy]:
        """The best first, and at the end what could not be estimated."""
        return sorted(self._found, key=lambda remedy: -(remedy.saves or 0))


def _estimate(memory: Callable[[], int]) -> int | None:
    try:
        return memory()
    except Exception as failure:  # whatever a model does: advice must not hide what it is about
        log.debug("no estimate", exc_info=failure)
        return None


def _half_precision(model: Any, device: torch.device) -> str | None:
    """Autocast that this device has and this model takes."""
    if device.type != "cuda" or torch.cuda.is_bf16_supported():
        return "bf16-mixed"
    return None if isinstance(model, FirstStageModule) else "16-mixed"


def _switch(value: object, path: str = "model") -> str | None:
    """Where a configuration says whether the U-Net's blocks recompute their activations."""
    if not isinstance(value, Mapping):
        return None
    target = value.get("target")
    if isinstance(target, str) and "use_checkpoint" in signature_of(locate(target)).annotations:
        return f"{path}.params.use_checkpoint"
    found = (_switch(each, f"{path}.{key}") for key, each in value.items())
    return next((place for place in found if place is not None), None)


@contextmanager
def advised_drawing(job: Job) -> Iterator[None]:
    """Have drawing that runs out of memory inside end with one error that says what would help.

    Raises OutOfMemory.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = _reason(error)
        release_memory(error)
    else:
        return
    _report("drawing", reason, drawing_remedies(job))
    raise OutOfMemory


def drawing_remedies(job: Job) -> list[Remedy]:
    """What would help a job that needs too much memory, the best first.

    What cannot be estimated comes without a number.
    """
    args = job.args
    size = min(args.batch_size, len(job.items))
    decoded = min(args.decode_batch or size, size)

    def memory(size: int, decoded: int, precision: str) -> int:
        return _drawing_memory(job, size, decoded, precision)

    trial = _Trial(lambda: memory(size, decoded, args.precision))
    same = "images stay the same, to rounding; in a new --out"
    if size > 1:
        half = size // 2
        trial.add(
            f"--batch-size {half}", lambda: memory(half, min(decoded, half), args.precision), same
        )
    if decoded > 1:
        trial.add("--decode-batch 1", lambda: memory(size, 1, args.precision), same)
    if args.precision == "fp32":
        price = "images change a little; in a new --out"
        trial.add("--precision bf16", lambda: memory(size, decoded, "bf16"), price)
    return trial.remedies()


def _drawing_memory(job: Job, size: int, decoded: int, precision: str) -> int:
    """Bytes that drawing so many images at once takes beside weights."""
    model, items = job.model, list(job.items[:1]) * size
    given = job.task.given(model, job.args, items)
    options: Any = {**job.options, **given.options, "steps": 1, "decode_batch": decoded}
    options["guide"] = job._guide(given)
    device, seeds = model.device, [item["seed"] for item in items]

    def draw() -> None:
        with autocast(device, precision):
            model.sample(seeds, given.batch, **options)

    return traced(model, draw, device).peak


def _reason(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
