"""Lightning's Trainer from the `lightning:` block and the command line, with our defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy

from ldm.callbacks.checkpoints import AtomicCheckpointIO, LastCheckpoint, MonitorCheck
from ldm.callbacks.images import ImageLogger
from ldm.callbacks.progress import TrainingProgress
from ldm.callbacks.run import RunRecord
from ldm.callbacks.throughput import Throughput
from ldm.cli.arguments import Arguments, Devices, parse_devices
from ldm.cli.rundir import RunDir
from ldm.config import ConfigError, instantiate_from_config

__all__ = ["build_trainer", "trainer_options"]


def trainer_options(block: Mapping[str, Any], args: Arguments) -> dict[str, Any]:
    """Arguments of the Trainer: our defaults, then the YAML's, then the command line's.

    Raises ConfigError for devices that this machine does not have.
    """
    options: dict[str, Any] = {"log_every_n_steps": 50, "use_distributed_sampler": False}
    options |= dict(block) | {k: v for k, v in args.trainer.items() if k != "ckpt_path"}
    gpus = options.pop("gpus", None)  # published: an argument of the Trainer, then
    devices = args.devices or (parse_devices(str(gpus)) if gpus is not None else None)
    if devices is not None:
        _require(devices)
        options |= {"accelerator": devices.accelerator, "devices": devices.devices}
    options.setdefault("accelerator", "auto")
    options.setdefault("devices", 1)
    options.setdefault("precision", _default_precision(options["accelerator"]))
    if options.get("strategy", "auto") in ("auto", "ddp") and options["devices"] not in (1, "1"):
        options["strategy"] = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    return options


def _require(devices: Devices) -> None:
    if devices.accelerator != "gpu":
        return
    found = torch.cuda.device_count()
    wanted = devices.devices
    highest = max(wanted) + 1 if isinstance(wanted, list) else wanted
    if found == 0:
        raise ConfigError(f"--gpus {_text(wanted)}: no CUDA device was found; give --gpus cpu")
    if highest > found:
        raise ConfigError(
            f"--gpus {_text(wanted)}: there are {found} CUDA devices, 0 to {found - 1}"
        )


def _text(wanted: int | list[int]) -> str:
    return ",".join(map(str, wanted)) if isinstance(wanted, list) else str(wanted)


def _default_precision(accelerator: str) -> str:
    """bf16 autocast with fp32 weights where the hardware multiplies bf16, otherwise fp32."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    is_fast = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)
    return "bf16-mixed" if is_fast() else "32-true"


def build_trainer(
    options: Mapping[str, Any],
    lightning: Mapping[str, Any],
    run: RunDir,
    *,
    monitor: str | None,
    record: RunRecord,
) -> pl.Trainer:
    """The Trainer with loggers, checkpoints and callbacks; it has touched no device yet.

    lightning: the `lightning:` block of the configuration.
    monitor: the validation metric that decides which checkpoints are best; None keeps only the
        last.
    """
    options = dict(options)
    plain = options.get("fast_dev_run") or options.get("barebones")
    callbacks = _callbacks(lightning.get("callbacks") or {}, run)
    if not plain and options.setdefault("enable_checkpointing", True):
        callbacks += _checkpoints(lightning.get("modelcheckpoint"), run, monitor)
    if options.pop("enable_progress_bar", True) and not plain:
        callbacks.append(TrainingProgress())
    return pl.Trainer(
        **{"default_root_dir": str(run.path), "enable_model_summary": False} | options,
        callbacks=[record, *callbacks],
        logger=[] if plain else _loggers(lightning.get("logger"), run),
        plugins=[AtomicCheckpointIO()],
    )


def _loggers(block: Any, run: RunDir) -> list[Logger]:
    if block and "target" in block:
        params = {"save_dir": str(run.path), "name": ""} | (block.get("params") or {})
        return [instantiate_from_config({"target": block["target"], "params": params})]
    return [
        TensorBoardLogger(save_dir=str(run.path), name="", version=""),
        CSVLogger(save_dir=str(run.path), name="metrics", version=run.now),
    ]


def _checkpoints(block: Any, run: RunDir, monitor: str | None) -> list[Callback]:
    params = dict((block or {}).get("params") or {})
    last = LastCheckpoint(run.checkpoints, every_n_steps=params.pop("every_n_train_steps", 1000))
    if monitor is None:
        return [last]
    defaults = {
        "dirpath": str(run.checkpoints),
        "filename": "{epoch:06}",
        "monitor": monitor,
        "save_top_k": 3,
        "save_last": False,
    }
    target = (block or {}).get("target", "pytorch_lightning.callbacks.ModelCheckpoint")
    best = instantiate_from_config({"target": target, "params": defaults | params})
    return [MonitorCheck(monitor), best, last]


def _callbacks(block: Mapping[str, Any], run: RunDir) -> list[Callback]:
    """The default callbacks, each replaced or adjusted by one of the same name in the YAML."""
    defaults: dict[str, dict[str, Any]] = {
        "image_logger": {
            "target": f"{ImageLogger.__module__}.ImageLogger",
            "params": {"directory": str(run.path / "images")},
        },
        "learning_rate_logger": {
            "target": "pytorch_lightning.callbacks.LearningRateMonitor",
            "params": {"logging_interval": "step"},
        },
        "throughput": {"target": f"{Throughput.__module__}.Throughput", "params": {}},
    }
    for name, given in block.items():
        merged = defaults.get(name, {"params": {}}) | {
            k: v for k, v in given.items() if k == "target"
        }
        merged["params"] = merged["params"] | (given.get("params") or {})
        defaults[name] = merged
    return [
        instantiate_from_config(each, path=f"lightning.callbacks.{name}")
        for name, each in defaults.items()
    ]
