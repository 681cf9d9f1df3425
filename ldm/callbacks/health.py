"""What can be seen on the first batches: a training that cannot lead anywhere as it was set up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ldm.callbacks.guess import loss_of_silence
from ldm.config import ConfigError
from ldm.diffusion.draws import KeyedDraws
from ldm.log import log

__all__ = [
    "HealthChecks",
    "condition_problems",
    "first_loss_problems",
    "image_problems",
    "latent_problems",
]

_ENOUGH = 64  # examples that tell whether an entry of the batch is always the same
_DATA = "data.params.train"


class HealthChecks(pl.Callback):
    """Looks at the first batches, and says with the YAML's path what is wrong; on by default.

    Images are in [-1, 1] and not all alike; latents have a standard deviation near 1; a condition
    differs from example to example, and so does what its encoder makes of it; the loss of the first
    step is what a network that still says 0 gets. Images that are plainly in [0, 255] end the
    training; of everything else there is a warning.

    Takes an encoding of the first batch, on the first process. Nothing that is random changes.

    min_std, max_std: of scaled latents, without a warning.
    """

    def __init__(self, min_std: float = 0.5, max_std: float = 2.0) -> None:
        if not 0 < min_std < max_std:
            raise ConfigError(f"min_std: {min_std}; expected above 0 and below max_std, {max_std}")
        self.min_std, self.max_std = min_std, max_std
        self._conditions = _Constancy()
        self._is_new = self._is_silent = False
        self._is_first, self._size = True, 1.0
        self._hook: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to look; the loss of the first step only of a run that begins."""
        self._is_first, self._conditions = True, _Constancy()
        self._is_new = not trainer.global_step and trainer.ckpt_path is None
        if self._is_new and hasattr(pl_module, "objective"):
            self._is_silent = True
            network: Any = pl_module.model
            self._hook = network.register_forward_hook(self._listen)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look at the batch, the first most closely.

        Raises ConfigError for images in [0, 255].
        """
        if not isinstance(batch, Mapping) or not hasattr(pl_module, "get_input"):
            return
        is_first, self._is_first = self._is_first, False
        conditions = _conditions(pl_module, batch)
        if problem := self._conditions.update(conditions):
            _say(trainer, [problem])
        if is_first:
            _say(trainer, self._look(trainer, pl_module, batch))

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Compare the first loss with that of a network that says 0, if it does."""
        if self._hook is None:
            return
        self._hook.remove()
        self._hook = None
        if self._is_silent and isinstance(outputs, Mapping) and "loss" in outputs:
            seen = float(outputs["loss"]) * trainer.accumulate_grad_batches
            size = len(next(iter(batch.values())))
            _say(trainer, first_loss_problems(pl_module, seen, size, self._size))

    def _listen(self, network: Any, inputs: Any, output: Tensor) -> None:
        self._is_silent = self._is_silent and not bool(output.detach().count_nonzero())

    @torch.no_grad()
    def _look(self, trainer: pl.Trainer, model: Any, batch: Mapping[str, Any]) -> Iterator[str]:
        images = model.get_input(batch)
        yield from image_problems(images, _image_path(model))
        self._size = float(images.float().square().mean().sqrt())
        devices = [images.device] if images.is_cuda else []
        with torch.random.fork_rng(devices), trainer.precision_plugin.forward_context():
            first_stage = getattr(model, "first_stage_model", None)
            if first_stage is not None and any(True for _ in first_stage.parameters()):
                keys = batch.get("sample_id") or list(range(len(images)))
                draws = KeyedDraws(keys, model.seed, 0, images.device)
                limits = (self.min_std, self.max_std)
                z = model.encode(images, draws)
                self._size = float(z.float().square().mean().sqrt())
                yield from latent_problems(z, model, limits)
            yield from condition_problems(model, batch)


def image_problems(images: Tensor, path: str) -> Iterator[str]:
    """What is wrong with images (B, C, H, W) that should be in [-1, 1].

    path: of the data set in the YAML.  Raises ConfigError for images in [0, 255].
    """
    images = images.float()
    low, high = (float(each) for each in images.aminmax())
    if not (isfinite(low) and isfinite(high)):
        yield f"{path}: images of the first batch have values that are not finite"
        return
    seen = f"{path}: images of the first batch are in [{low:.3g}, {high:.3g}]"
    if low >= 0 and high > 64:
        raise ConfigError(
            f"{seen}; expected [-1, 1]: divide by 127.5 and subtract 1, or give uint8"
        )
    if low < -1.01 or high > 1.01:
        yield f"{seen}; expected [-1, 1]"
    elif low == high:
        yield f"{seen}: they are of one colour, and all the same"
    elif low >= 0 and images.shape[1] in (1, 3):  # label maps of more channels are 0 and 1
        yield f"{seen}; expected [-1, 1]: they seem to be in [0, 1], so multiply by 2, subtract 1"
    if low < high and len(images) > 1 and bool((images == images[:1]).all()):
        yield f"{path}: the {len(images)} images of the first batch are all the same"


def latent_problems(z: Tensor, model: Any, limits: tuple[float, float]) -> Iterator[str]:
    """What is wrong with scaled latents (B, c, h, w): their standard deviation should be near 1."""
    std = float(z.float().std())
    if limits[0] <= std <= limits[1]:
        return
    scale = float(model.scale_factor)
    told = (
        f"model.params.scale_factor: latents of the first batch have standard deviation {std:.3g}"
    )
    if not std > 0 or not isfinite(std):
        yield (
            f"{told}: the first stage says nothing of its images; see "
            "model.params.first_stage_config.params.ckpt_path"
        )
        return
    yield (
        f"{told} with scale_factor = {scale:.4g}; the noise levels are made for 1: take "
        f"{scale / std:.4g}, or scale_by_std: true"
    )


def condition_problems(model: Any, batch: Mapping[str, Any]) -> Iterator[str]:
    """Encoders that make the same of entries of a batch that differ."""
    for part in getattr(getattr(model, "conditioner", None), "parts", ()):
        value = part.read(batch)
        if len(value) < 2 or _is_constant(value):
            continue
        encoder = part.embedder
        was = {module: module.training for module in encoder.modules()}
        encoded = encoder.eval().encode(value)
        for module, mode in was.items():
            module.training = mode
        if bool((encoded == encoded[:1]).all()):
            yield (
                f"model.params.cond_stage_config: {type(encoder).__name__} makes the same of all "
                f"{len(value)} entries {part.key!r} of the first batch, although they differ"
            )


def first_loss_problems(model: Any, seen: float, count: int, size: float = 1.0) -> Iterator[str]:
    """What the first loss of a network that says 0 tells of the objective and its data.

    count: examples that it is the mean of.  size: root mean square of what is diffused.
    """
    expected, spread = loss_of_silence(model, size)
    # a share for data that is not normal, five standard errors for the times that were drawn
    tolerance = 0.2 * abs(expected) + 5 * spread / count**0.5
    if not abs(seen - expected) <= tolerance:
        kind = model.objective.parameterization
        yield (
            f"model.params: the first loss is {seen:.4g}, where a network that predicts {kind} and "
            f"says 0 gets {expected:.4g}; see parameterization, the loss's weights and {_DATA}"
        )


class _Constancy:
    """Which entries of the batches are the same in all examples, told once there are enough."""

    def __init__(self) -> None:
        self._first: dict[str, Any] = {}
        self._differ: set[str] = set()
        self._count = 0
        self._is_told = False

    def update(self, entries: Mapping[str, Any]) -> str | None:
        """Take in the entries of a batch; what is wrong with them, when that is certain."""
        if self._is_told or not entries:
            return None
        self._count += len(next(iter(entries.values())))
        for name, values in entries.items():
            if name in self._differ:
                continue
            first = self._first.setdefault(name, values[0])
            if not _is_constant(values, first):
                self._differ.add(name)
        self._is_told = self._count >= _ENOUGH or len(self._differ) == len(entries)
        same = [name for name in entries if name not in self._differ]
        if not self._is_told or not same:
            return None
        return (
            f"{_DATA}: the entry {same[0]!r} is the same in the first {self._count} examples "
            f"({_short(self._first[same[0]])}), so a model that is conditioned on it learns "
            "nothing of it"
        )


def _conditions(model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Entries that tell examples apart: of the condition, or the labels of a classifier."""
    parts = getattr(getattr(model, "conditioner", None), "parts", ())
    keys = [part.key for part in parts]
    if isinstance(label := getattr(model, "label_key", None), str):
        keys.append(label)
    return {key: batch[key] for key in keys if key in batch}


def _is_constant(values: Any, first: Any = None) -> bool:
    first = values[0] if first is None else first
    if isinstance(values, Tensor):
        return values.shape[1:] == first.shape and bool((values == first.to(values)).all())
    return all(_is_same(value, first) for value in values)


def _is_same(value: Any, first: Any) -> bool:
    if isinstance(value, Tensor) and isinstance(first, Tensor):
        return value.shape == first.shape and bool((value == first).all())
    return bool(value == first) if isinstance(value, type(first)) else False


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{float(value):g}" if value.numel() == 1 else f"a tensor {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _image_path(model: Any) -> str:
    key = getattr(model, "first_stage_key", None) or getattr(model, "image_key", "image")
    return f"{_DATA} ({key!r})"


def _say(trainer: pl.Trainer, problems: Any) -> None:
    for problem in problems:
        if trainer.is_global_zero:
            log.warning("%s", problem)
