"""Checks before anything heavy: the model on the meta device, against one example of the data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.cli.preflight_classifier import check_class_count, check_example
from ldm.cli.preflight_concatenated import check_concatenated
from ldm.cli.preflight_encoders import check_classes, check_told
from ldm.cli.preflight_first_stage import check_perceptual, check_precision, check_transforms
from ldm.config import ConfigError, did_you_mean, instantiate_model
from ldm.config.signature import parameter_problems
from ldm.data.substitutes import first_readable
from ldm.io.checkpoint import compare, load_state
from ldm.io.unpickle import unpickle
from ldm.log import log
from ldm.losses.autoencoder import FirstStageLoss
from ldm.models.classifier import LatentClassifier
from ldm.models.diffusion.scale import require_source
from ldm.models.first_stage_module import FirstStageModule
from ldm.tensor import to_image_tensor

__all__ = ["checks", "preflight", "shape_of"]

LOGGED = ("batch", "split", "micro_batch")  # arguments that the image logger gives itself
SPLITS = ("train", "validation", "test")  # sets that the model sees


def preflight(
    block: Mapping[str, Any],
    data: Any,
    checkpoint: Path | None = None,
    *,
    callbacks: Mapping[str, Any] | None = None,
    precision: object = None,
) -> None:
    """Build the model without memory, then hold an example of each data set against it.

    block: the `model:` block of the configuration.  data: the data module, its data sets built.
    checkpoint: the checkpoint to resume from.  callbacks: the block `lightning.callbacks`.
    precision: the trainer's, where something is to be trained.

    Finds parts that do not fit each other, checkpoints that are missing or of another model, batch
    entries that the data does not have or that are no images, images of the wrong size or number of
    channels, weights that nothing brings, and pictures that the model cannot make.
    Raises ConfigError.
    """
    model = shape_of(block)
    for check in checks(
        model,
        block,
        data.datasets,
        checkpoint,
        classes=data.num_classes,
        callbacks=callbacks,
        precision=precision,
    ):
        check()


def shape_of(block: Mapping[str, Any]) -> Any:
    """The model of a block `model:` on the meta device: shapes without memory.

    Checkpoints that it names are read. Raises ConfigError.
    """
    with torch.device("meta"), _only_warnings():
        model = instantiate_model(block)
    return model.to("meta")  # checkpoints brought real weights, of which only the shapes matter


def checks(
    model: Any,
    block: Mapping[str, Any],
    datasets: Mapping[str, Any],
    checkpoint: Path | None = None,
    *,
    classes: int | None = None,
    callbacks: Mapping[str, Any] | None = None,
    precision: object = None,
) -> Iterator[Callable[[], object]]:
    """What is to be checked, one after the other; each raises ConfigError for what it finds.

    model: of the block, on the meta device.  datasets: by split.  classes: of the training data,
    None where it has no list of them.  For the others see `preflight`.
    """
    yield lambda: check_classes(model, classes)
    for split in [name for name in SPLITS if name in datasets] or [*datasets][:1]:
        yield partial(_check_split, model, datasets[split], split)
    if isinstance(model, LatentClassifier):
        yield lambda: check_class_count(model, classes)
    yield lambda: _check_pictures(model, callbacks or {})
    if isinstance(model, FirstStageModule):
        yield lambda: check_precision(precision)
        yield lambda: check_perceptual(model, is_resumed=checkpoint is not None)
    if checkpoint is None:
        yield lambda: _check_first_stage(model, block.get("params") or {})
    else:
        yield partial(_check_resumable, model, checkpoint)


def _check_split(model: Any, data: Any, split: str) -> None:
    image = _checked_image(model, data, f"data.params.{split}")
    if split == "train" and isinstance(model, FirstStageModule):
        check_transforms(model, min(image.shape[:2]))


@contextmanager
def _only_warnings() -> Iterator[None]:
    """Keep to itself what the model says of its checkpoints: it says so again when it is built."""
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


def _check_first_stage(model: Any, params: Mapping[str, Any]) -> None:
    """An untrained first stage must be meant: its checkpoint is given, or is explicitly null.

    Otherwise a forgotten key would cost a whole training on latents that say nothing.
    """
    try:
        require_source(params)
    except ConfigError as error:
        raise ConfigError(f"model.params.{error}") from error
    config = params.get("first_stage_config")
    first_stage = getattr(model, "first_stage_model", None)
    is_brought = params.get("ckpt_path") or params.get("diffusion_ckpt_path")
    if first_stage is None or not isinstance(config, Mapping) or is_brought:
        return
    has_weights = next(first_stage.parameters(), None) is not None
    if has_weights and "ckpt_path" not in (config.get("params") or {}):
        raise ConfigError(
            "model.params.first_stage_config.params.ckpt_path: not given, so the first stage would "
            "stay untrained; give the checkpoint of a trained one, or null if that is meant"
        )


def _checked_image(model: Any, data: Any, origin: str) -> Tensor:
    """The image of the first example of a data set, which must have what the model reads.

    origin: place of the set in the configuration.
    """
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise ConfigError(f"{origin}.target: {type(data).__name__} is no data set; expected items")
    sample = first_readable(data)
    if not isinstance(sample, Mapping):
        raise ConfigError(
            f"{origin}: an example is of type {type(sample).__name__}; expected a mapping of names "
            "to values, such as {'image': ..., 'class_label': ...}"
        )
    for key, where in _needed(model).items():
        if key not in sample:
            raise ConfigError(
                f"{where}: {key!r} is no entry of {origin}, which has {', '.join(sorted(sample))}"
                + did_you_mean(key, sample)
            )
    image = _image(model, sample, origin)
    _check_images(model, image, origin)
    if isinstance(model, LatentClassifier):
        check_example(model, sample, image, origin)
    check_concatenated(model, data, sample, origin)
    check_told(model, sample, origin)
    return image


def _image(model: Any, sample: Mapping[str, Any], origin: str) -> Tensor:
    """The image of an example, (H, W, C) or (H, W).

    origin: place of the example's set in the configuration.
    Raises ConfigError for an entry that is no image.
    """
    parameter = "first_stage_key" if hasattr(model, "first_stage_key") else "image_key"
    key = getattr(model, parameter)
    value = sample[key]
    if isinstance(value, np.ndarray | Tensor):
        image = torch.as_tensor(value)
        found = f"{image.dtype} of shape {tuple(image.shape)}".removeprefix("torch.")
        is_image = image.ndim in (2, 3) and (
            image.dtype == torch.uint8 or image.is_floating_point()
        )
    else:
        found, is_image = f"of type {type(value).__name__}", False
    if not is_image:
        raise ConfigError(
            f"{origin}: {key!r}, which model.params.{parameter} names, is {found}; expected an "
            "image (H, W, C) or (H, W), uint8 or floating point"
        )
    return image


def _check_resumable(model: Any, path: Path) -> None:
    """The checkpoint must hold this model, and how far its training was."""
    state = load_state(path)
    report = compare(state, model.state_dict())
    if not report.is_exact:
        raise ConfigError(
            f"{path} is of another model than the {type(model).__name__} configured: {report}\n"
            f"  to start a new run from a part of it: model.params.ckpt_path={path}, and in "
            "model.params.ignore_keys how the names of all others begin"
        )
    if missing := {"optimizer_states", "loops"} - unpickle(path).keys():
        raise ConfigError(
            f"{path}: holds weights alone ({', '.join(sorted(missing))} missing), so there is no "
            f"training to go on with; to start a new run from them: model.params.ckpt_path={path}"
        )


def _needed(model: Any) -> dict[str, str]:
    """Batch entries that the model reads, and the parameter that names each."""
    if isinstance(model, LatentClassifier):
        names = ("first_stage_key", "label_key")
        return {getattr(model, name): f"model.params.{name}" for name in names}
    if not hasattr(model, "conditioner"):
        return {model.image_key: "model.params.image_key"}
    entries = {model.first_stage_key: "model.params.first_stage_key"}
    for part in model.conditioner.parts:
        # an encoder's own key comes before the model's
        has_own = part.embedder.key is not None
        name = "cond_stage_config (its `key`)" if has_own else "cond_stage_key"
        entries[part.key] = f"model.params.{name}"
    return entries


def _check_channels(model: Any, channels: int, origin: str) -> None:
    """The first stage must take images of so many channels, and one that is trained give them."""
    first_stage = getattr(model, "first_stage_model", model)
    place = "model.params" + ("" if first_stage is model else ".first_stage_config.params")
    counts = {"in_channels": getattr(getattr(first_stage, "encoder", None), "in_channels", None)}
    loss = getattr(model, "loss", None)
    if isinstance(loss, FirstStageLoss):
        counts["out_ch"] = model.get_last_layer().shape[0]
    for name, count in counts.items():
        if count not in (None, channels):
            raise ConfigError(
                f"{place}.ddconfig.{name}: {count}, but the images of {origin} have {channels} "
                "channels"
            )
    if isinstance(loss, FirstStageLoss):
        try:
            loss.require_channels(channels)
        except ValueError as error:
            raise ConfigError(f"{origin}: images of {channels} channels: {error}") from error


def _check_images(model: Any, image: Tensor, origin: str) -> None:
    """Send the image's shape through the first stage, and the latent's to the network's sizes.

    A first stage that is to be trained also shows it to its discriminator.
    origin: place of the image's set in the configuration.
    """
    shape = to_image_tensor(image[None]).shape
    _check_channels(model, shape[1], origin)
    images = torch.empty(shape, device="meta")
    try:
        z = model.encode(images)
        if hasattr(getattr(model, "loss", None), "judge"):
            model.loss.judge(images)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{origin}: images of {shape[1]} channels, {shape[2]} x {shape[3]}, do not fit the "
            f"first stage: {str(error).splitlines()[0]}"
        ) from error
    net = getattr(getattr(model, "model", None), "diffusion_model", None)
    factor = getattr(net, "downsample_factor", 1)
    if net is None or not isinstance(z, Tensor):
        return
    height, width = z.shape[-2:]
    if height % factor or width % factor:
        raise ConfigError(
            f"{origin}: images of {shape[2]} x {shape[3]} become {height} x {width} latents; "
            f"expected multiples of {factor}, by which unet_config.params.channel_mult divides them"
        )
    size = model.image_size
    expected = (size, size) if isinstance(size, int) else tuple(size)
    if (height, width) != expected and origin == "data.params.train":
        log.warning(
            "model.params.image_size is %s, but what is diffused is %d x %d: sampling scripts will "
            "draw at a size that was not trained",
            size,
            height,
            width,
        )


def _check_pictures(model: Any, callbacks: Mapping[str, Any]) -> None:
    """An image logger may ask for what the model's `log_images` takes."""
    for name, part in callbacks.items():
        asked = ((part or {}).get("params") or {}).get("log_images_kwargs")
        if not asked or not hasattr(model, "log_images"):
            continue
        path = f"lightning.callbacks.{name}.params.log_images_kwargs"
        if not isinstance(asked, Mapping):
            raise ConfigError(f"{path}: expected a mapping, got {asked!r}")
        problems = [
            f"{path}.{key}: comes from the image logger" for key in LOGGED if key in asked
        ] + list(parameter_problems(model.log_images, asked, path=path, stage="part"))
        if problems:
            raise ConfigError("\n".join(problems))
