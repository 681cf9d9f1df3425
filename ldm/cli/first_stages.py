"""What the scripts that judge first stages share: flags, the first stage of a run, the record."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.cli.rundir import model_files, run_of
from ldm.config import (
    ConfigError,
    check,
    instantiate_from_config,
    load,
    model_block,
    to_plain,
    trust,
    with_key,
    without_checkpoints,
)
from ldm.evaluation.extractor import Extractor, configured_extractor, inception
from ldm.evaluation.first_stage import Judge, lpips_of
from ldm.io.checkpoint import load_into, load_state, select
from ldm.io.compvis import from_published
from ldm.io.digest import sha256_of
from ldm.log import log
from ldm.losses.perceptual import LpipsChannels

__all__ = [
    "LoadedFirstStage",
    "add_judge",
    "add_running",
    "image_channels",
    "judge_of",
    "load_first_stage",
    "versions",
]

_PREFIX = "first_stage_model."
_NOT_RECONSTRUCTING = ("loss.", "colorize", "model_ema.loss")  # names of what is only for training

Weights = Literal["ema", "raw"]


@dataclass(frozen=True)
class LoadedFirstStage:
    """A first stage ready to use, and where it is from.

    module: has `encode`, `decode`, `downsample_factor`.  checkpoint, sha256: its file.
    weights: the averaged ones or those trained last, whichever were there.
    channels: of its images.  size: pixels that it was trained on, None where that is unknown.
    trained_with: `dtype` and `value_range` of its training data and `lpips_channels` of its loss,
        as far as its configuration says them.
    """

    name: str
    module: Any
    checkpoint: Path
    sha256: str
    weights: Weights
    channels: int
    size: int | None
    trained_with: dict[str, Any] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any]:
        """What a record says of it."""
        return {
            "name": self.name,
            "class": type(self.module).__name__,
            "checkpoint": str(self.checkpoint),
            "sha256": self.sha256,
            "weights": self.weights,
            "downsample_factor": self.module.downsample_factor,
            "latent_channels": self.module.latent_channels,
        }


def add_running(parser: argparse.ArgumentParser) -> None:
    """The flags that say where and how a first stage runs."""
    add = parser.add_argument
    add(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="precision of matrix products"
    )
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...")
    add("--trust", action="append", default=[], metavar="PACKAGE", help="see main.py --help")


def add_judge(parser: argparse.ArgumentParser) -> None:
    """The flags that say what reconstructions are judged by."""
    add = parser.add_argument
    add("--lpips-weights", metavar="FILE", help="vgg16-397923af.pth, or a state dict of LPIPS")
    add("--inception-weights", metavar="FILE", help="for rFID and R-IS, by torch-fidelity")
    add("--features", metavar="YAML", help="another network (target, params) for the distance")
    add(
        "--lpips-channels",
        nargs="+",
        metavar="CHANNEL",
        help="three that are red, green and blue, counted from 0, or each; default: as trained",
    )


def judge_of(
    args: argparse.Namespace, device: torch.device, channels: LpipsChannels = None
) -> Judge:
    """What the flags of `add_judge` describe; ConfigError for files that are none.

    channels: of the images that LPIPS compares.
    """
    if args.inception_weights and args.features:
        raise ConfigError("--inception-weights and --features: one network at a time")
    extractor: Extractor | None = None
    if args.inception_weights:
        extractor = inception(args.inception_weights, device)
    elif args.features:
        extractor = configured_extractor(args.features, device)
    lpips = None if args.lpips_weights is None else lpips_of(args.lpips_weights, device, channels)
    return Judge(lpips, extractor, lpips_channels=channels)


def load_first_stage(
    path: str,
    config: str | None,
    *,
    device: torch.device,
    weights: Weights | None = None,
    trusted: Sequence[str] = (),
) -> LoadedFirstStage:
    """The first stage of a run of its own, or inside a run of a latent diffusion model.

    path: a run directory, or a checkpoint.  config: describes a checkpoint outside a run.
    weights: the averaged ones or those trained last; by default the averaged ones where the first
        stage's own run kept them. Inside a diffusion model it is as that uses it.

    Raises ConfigError: no such run or checkpoint, a checkpoint of another model or without the
    averaged weights that were asked for, a diffusion model without a first stage.
    """
    for package in trusted:
        trust(package)
    checkpoint, files = model_files(path, config)
    whole = load(files)
    with with_key(str(files[-1])):
        block = model_block(whole)
    check({"model": block})
    block, prefix = _first_stage_block(path, without_checkpoints(block))
    where = "model.params.first_stage_config" if prefix else "model"
    with with_key(str(files[-1])):
        trained_with = _trained_with(whole, block)
        module = instantiate_from_config(_without_loss(block), path=where)
    if not all(hasattr(module, name) for name in ("encode", "decode", "downsample_factor")):
        raise ConfigError(f"{path}: holds a {type(module).__name__}, which is no first stage")
    used = _restore(module, checkpoint, prefix, weights)
    return LoadedFirstStage(
        name=_name(path, checkpoint),
        module=module.to(device).eval().requires_grad_(False),
        checkpoint=checkpoint,
        sha256=sha256_of(checkpoint),
        weights=used,
        channels=image_channels(module),
        size=(block.get("params") or {}).get("ddconfig", {}).get("resolution"),
        trained_with=trained_with,
    )


def _name(path: str, checkpoint: Path) -> str:
    """The run, with the checkpoint where that was named; or the checkpoint alone."""
    run = run_of(path)
    if run is None:
        return checkpoint.stem
    return run.resolve().name if Path(path).is_dir() else f"{run.name}/{checkpoint.stem}"


def _first_stage_block(path: str, block: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Target and parameters of the first stage, and the prefix of its names in the checkpoint."""
    params = dict(block.get("params") or {})
    prefix = ""
    if "first_stage_config" in params:
        block, prefix = params["first_stage_config"], _PREFIX
        params = dict(block.get("params") or {})
    elif "unet_config" in params:
        name = str(block.get("target")).rpartition(".")[2]
        raise ConfigError(
            f"{path}: holds a {name}, a diffusion model without a first stage; give the run of a "
            "first stage, or of a latent diffusion model"
        )
    return {"target": block.get("target"), "params": params}, prefix


def _without_loss(block: Mapping[str, Any]) -> dict[str, Any]:
    """A first stage that is not trained: the networks of its loss would only take time."""
    params = dict(block["params"])
    if "lossconfig" in params:
        params["lossconfig"] = {"target": "torch.nn.Identity"}
    return {**block, "params": params}


def _trained_with(whole: DictConfig, block: Mapping[str, Any]) -> dict[str, Any]:
    """How images were read and compared in training, as far as a configuration says it."""
    found: dict[str, Any] = {}
    for key in ("dtype", "value_range"):
        try:
            value = OmegaConf.select(whole, f"data.params.train.params.{key}")
        except OmegaConfBaseException as error:
            raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
        found[key] = to_plain(value)
    loss = block["params"].get("lossconfig")
    loss_params = loss.get("params") if isinstance(loss, Mapping) else None
    found["lpips_channels"] = (loss_params or {}).get("lpips_channels")
    return {key: value for key, value in found.items() if value is not None}


def _restore(module: Any, checkpoint: Path, prefix: str, weights: Weights | None) -> Weights:
    """Load a first stage's weights, the averaged ones where it has some unless others are asked."""
    if prefix and weights == "ema":
        raise ConfigError(
            f"--weights ema: the first stage inside the diffusion model {checkpoint} is judged as "
            "that uses it; leave the flag out"
        )
    wanted = module.state_dict()
    if not wanted:  # the identity has none
        return "raw"
    state = load_state(checkpoint)
    if prefix:
        state = select(state, prefix, source=str(checkpoint))
    state = {k: v for k, v in state.items() if not k.startswith(_NOT_RECONSTRUCTING)}
    ignored = list(_NOT_RECONSTRUCTING)
    has_average = any(name.startswith("model_ema.") for name in state)
    if not has_average:
        ignored.append("model_ema.")
    renamed = from_published(state, {k: v for k, v in wanted.items() if has_average or _live(k)})
    load_into(module, renamed, ignore=ignored, source=str(checkpoint))
    average = getattr(module, "model_ema", None) if has_average and not prefix else None
    if weights == "ema" and average is None:
        raise ConfigError(
            f"--weights ema: {checkpoint} has no averaged weights; leave the flag out for those "
            "trained last, or train with model.params.use_ema: true"
        )
    if weights == "raw" or average is None:
        log.info("%s: the weights as trained last", checkpoint)
        return "raw"
    average.copy_to(module.networks())
    log.info("%s: the averaged weights", checkpoint)
    return "ema"


def _live(name: str) -> bool:
    return not name.startswith("model_ema.")


def image_channels(module: Any) -> int:
    """Channels of the images that a first stage encodes."""
    encoder = getattr(module, "encoder", None)
    return int(getattr(encoder, "in_channels", 3 if encoder else module.latent_channels))


def versions() -> dict[str, str]:
    """Versions of what a measurement depends on."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("ldm", "torchmetrics", "pillow", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
