"""Lightning's Trainer from the `lightning:` block and the command line, with our defaults."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy
from torch.utils.tensorboard import SummaryWriter

from ldm.callbacks.checked import CheckedTrainer
from ldm.callbacks.checkpoint_io import AtomicCheckpointIO
from ldm.callbacks.checkpoints import LastCheckpoint
from ldm.callbacks.clock import deadline, to_seconds
from ldm.callbacks.guard import Guard
from ldm.callbacks.health import HealthChecks
from ldm.callbacks.images import ImageLogger
from ldm.callbacks.metrics_file import LoggedBeforeSaved, MetricsFile
from ldm.callbacks.monitor import MonitorCheck
from ldm.callbacks.out_of_memory import RoomToSave
from ldm.callbacks.pending import PendingValidation
from ldm.callbacks.progress import TrainingProgress
from ldm.callbacks.rate import GivenRate
from ldm.callbacks.run import RunRecord, SeededSteps
from ldm.callbacks.throughput import Throughput
from ldm.cli.arguments import Devices, parse_devices
from ldm.cli.rundir import RunDir
from ldm.config import ConfigError, instantiate_from_config, locate
from ldm.config.signature import parameter_problems
from ldm.spelling import require_known

__all__ = ["build_trainer", "callback_configs", "is_trial", "make_quiet", "trainer_options"]


# what Lightning says about itself, or about choices that are ours; matched from the beginning
_NOISE = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own code
    r".*does not have many workers",  # `num_workers` is chosen by the data module, or by the user
    r"Checkpoint directory .* exists and is not empty",  # as it does when a run is resumed
    r"The number of training batches .* is smaller than the logging interval",
    r"The dirpath has changed from",  # as it does with --resume_from_checkpoint
    r"Using ModelCheckpoint with manual optimization",  # weights after the step are what is meant
    r"Found \d+ module\(s\) in eval mode",  # the frozen first stage
    r"It is recommended to use `self.log\(",  # they are means over processes
    r"Be aware that when using `ckpt_path`, callbacks .*: \['Guard'\]",  # it was switched off
    r"You have overridden `on_before_batch_transfer` in `LightningModule`",  # to look at labels
    r"`broadcast_buffers` is deprecated",  # its successor copies buffers at the start
    r"`ModelCheckpoint\(monitor=.*could not find the monitored key",  # MonitorCheck knows better
)


# an epoch alone would not tell apart what is kept within one
CHECKPOINT_NAME = "{epoch:06}-{step:09}"

# published: weights of the past, kept if the YAML has a callback of this name
HISTORY = "metrics_over_trainsteps_checkpoint"
HISTORY_PARAMS = {
    "filename": CHECKPOINT_NAME,
    "monitor": "step",  # the latest ones; published: all of them, `save_top_k: -1`
    "mode": "max",
    "save_top_k": 10,
    "every_n_train_steps": 10000,
    "save_weights_only": True,
}


# parameters of `lightning.modelcheckpoint` that are ours, about `last.ckpt`
RESUME_PARAMS: dict[str, Any] = {
    "every_n_train_steps": 1000,
    "resume_points": 2,
    "embed_first_stage": False,
    "in_background": None,  # where the tensors are on a device
}


# arguments of Lightning's, now or once, that have another place here
_ELSEWHERE = {
    "resume_from_checkpoint": "--resume_from_checkpoint CKPT on the command line",  # published
    "logger": "lightning.logger",
    "callbacks": "lightning.callbacks",
}
_LOGGED_EVERY = 50  # steps, where the run is not shorter


def make_quiet() -> None:
    """Keep Lightning's tips, greetings and self-reproaches off the terminal."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(f"{name}.utilities.rank_zero").setLevel(logging.WARNING)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)


def trainer_options(block: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the Trainer: our defaults, then those of `lightning.trainer`.

    Raises ConfigError for devices that this machine does not have, for numbers out of range, and
    for a checkpoint to resume from, which is the command line's to name.
    """
    options: dict[str, Any] = {"use_distributed_sampler": False, **block}
    for name, instead in _ELSEWHERE.items():
        if (value := options.pop(name, None)) is not None:
            raise ConfigError(f"lightning.trainer.{name}: {value!r}; leave it out, give {instead}")
    gpus = options.pop("gpus", None)  # published: an argument of the Trainer, then
    if gpus is not None:
        devices = parse_devices(gpus)
        _require(devices)
        options |= {"accelerator": devices.accelerator, "devices": devices.devices}
    options.setdefault("accelerator", "auto")
    options.setdefault("devices", 1)
    if options.get("precision") is None:
        options["precision"] = _default_precision(options["accelerator"])
    if options["accelerator"] != "cpu" and not options.get("deterministic"):
        options.setdefault("benchmark", True)  # images are of one size
    if options.get("max_time") is not None:
        to_seconds(options["max_time"])  # a limit to a start, not to the run
        if options.get("enable_checkpointing") is False:
            raise ConfigError(
                "lightning.trainer.max_time: ends in a checkpoint; leave out enable_checkpointing"
            )
    if not {"max_steps", "max_epochs"} & options.keys():
        options["max_epochs"] = 1000  # Lightning's choice, which it would warn about
    steps = options.get("max_steps", -1)
    options.setdefault("log_every_n_steps", steps if 0 < steps < _LOGGED_EVERY else _LOGGED_EVERY)
    _check_numbers(options)
    if options.get("strategy", "auto") in ("auto", "ddp") and _is_parallel(options):
        options["strategy"] = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    return options


def _check_numbers(options: Mapping[str, Any]) -> None:
    for name, least in (
        ("accumulate_grad_batches", 1),
        ("gradient_clip_val", 0),
        ("log_every_n_steps", 1),
    ):
        if options.get(name) is not None and options[name] < least:
            raise ConfigError(
                f"lightning.trainer.{name}: {options[name]}; expected {least} or more"
            )
    for name in ("max_steps", "max_epochs", "limit_train_batches"):
        if options.get(name) == 0:
            raise ConfigError(f"lightning.trainer.{name}: 0; nothing would be trained")


def _is_parallel(options: Mapping[str, Any]) -> bool:
    """Whether more than one process may train."""
    devices = options["devices"]
    is_one = len(devices) == 1 if isinstance(devices, list) else devices in (1, "1")
    return not is_one or options.get("num_nodes", 1) != 1


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


def is_trial(options: Mapping[str, Any]) -> bool:
    """Whether these arguments of the Trainer ask for a trial, which writes nothing."""
    return bool(options.get("fast_dev_run") or options.get("barebones"))


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
    arguments: dict[str, Any] = {
        "default_root_dir": str(run.path),
        "enable_model_summary": False,
        **options,
    }
    plain = is_trial(options)
    limit = arguments.pop("max_time", None)
    end = None if plain else deadline(None if limit is None else to_seconds(limit))
    callbacks: list[Callback] = [RoomToSave(), SeededSteps(record.seed), GivenRate()]
    callbacks += [PendingValidation(), LoggedBeforeSaved()]
    callbacks += _callbacks(lightning.get("callbacks") or {}, run, plain=plain)
    if not plain:
        callbacks.insert(0, record)
    if not plain and arguments.setdefault("enable_checkpointing", True):
        callbacks += _checkpoints(lightning.get("modelcheckpoint"), run, monitor, end)
    if arguments.pop("enable_progress_bar", True) and not plain:
        callbacks.append(TrainingProgress())
    own = resume_params((lightning.get("modelcheckpoint") or {}).get("params") or {})
    io = AtomicCheckpointIO(keep=own["resume_points"], in_background=own["in_background"])
    try:
        return CheckedTrainer(
            **arguments,
            callbacks=callbacks,
            logger=[] if plain else _loggers(lightning.get("logger"), run),
            plugins=[io],
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise ConfigError(f"lightning.trainer: {error}") from error


def _loggers(block: Any, run: RunDir) -> list[Logger]:
    """TensorBoard, adjusted or replaced by the logger of the YAML; CSV in any case."""
    block = block or {}
    defaults = {"save_dir": str(run.path)}
    if "target" not in block:
        defaults |= {"name": "", "version": ""}
        _check_tensorboard(block.get("params") or {})
    config = {
        "target": block.get("target", "pytorch_lightning.loggers.TensorBoardLogger"),
        "params": defaults | (block.get("params") or {}),
    }
    written = MetricsFile(save_dir=str(run.path), name="metrics", version=run.now)
    return [instantiate_from_config(config, path="lightning.logger"), written]


def _check_tensorboard(params: Mapping[str, Any]) -> None:
    """What the logger does not take, it would pass on to the writer, once training has begun."""
    known = [
        name
        for target in (TensorBoardLogger, SummaryWriter)
        for name in inspect.signature(target).parameters
        if name != "kwargs"
    ]
    for name in params:
        try:
            require_known("lightning.logger.params", name, known)
        except ValueError as error:
            raise ConfigError(str(error)) from error


def _checkpoints(block: Any, run: RunDir, monitor: str | None, end: float | None) -> list[Callback]:
    params = dict((block or {}).get("params") or {})
    own = resume_params(params)
    last = LastCheckpoint(
        run.checkpoints,
        every_n_steps=own["every_n_train_steps"],
        deadline=end,
        embed_first_stage=own["embed_first_stage"],
    )
    if monitor is None:
        return [last]
    defaults = {
        "dirpath": str(run.checkpoints),
        "filename": CHECKPOINT_NAME,
        "monitor": monitor,
        "save_top_k": 3,
        "save_last": False,
        # else it also looks for the metric after an epoch that ended before validation
        "save_on_train_epoch_end": False,
        # what a run that was killed had saved already is saved in its place, not beside it
        "enable_version_counter": False,
    }
    target = (block or {}).get("target", "pytorch_lightning.callbacks.ModelCheckpoint")
    rest = {name: value for name, value in params.items() if name not in RESUME_PARAMS}
    best = instantiate_from_config(
        {"target": target, "params": defaults | rest}, path="lightning.modelcheckpoint"
    )
    return [MonitorCheck(monitor), best, last]


def resume_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Those parameters of `lightning.modelcheckpoint` that are about `last.ckpt`."""
    own = RESUME_PARAMS | {name: params[name] for name in RESUME_PARAMS if name in params}
    key = "lightning.modelcheckpoint.params"
    for name, unit in (("every_n_train_steps", "optimizer steps"), ("resume_points", "files")):
        if isinstance(own[name], bool) or not isinstance(own[name], int) or own[name] < 1:
            raise ConfigError(f"{key}.{name}: {own[name]!r}; expected 1 or more {unit}")
    for name, kinds in (("embed_first_stage", (bool,)), ("in_background", (bool, type(None)))):
        if not isinstance(own[name], kinds):
            raise ConfigError(f"{key}.{name}: {own[name]!r}; expected true or false")
    return own


def _default_callbacks(run: RunDir) -> dict[str, Any]:
    return {
        # first, so that the others see a model that a step has not spoilt
        "guard": {
            "target": f"{Guard.__module__}.Guard",
            "params": {"directory": str(run.path / "diagnosis")},
        },
        "health": {"target": f"{HealthChecks.__module__}.HealthChecks", "params": {}},
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


def callback_configs(block: Mapping[str, Any], run: RunDir) -> dict[str, dict[str, Any]]:
    """The default callbacks, each replaced, adjusted or (by `null`) left out in the YAML, by name.

    A callback of another class has the parameters of the YAML alone.
    block: `lightning.callbacks`.
    Raises ConfigError for parameters that a callback does not take.
    """
    configs = _default_callbacks(run)
    if HISTORY in block:
        directory = str(run.checkpoints / "trainstep_checkpoints")
        configs[HISTORY] = {
            "target": "pytorch_lightning.callbacks.ModelCheckpoint",
            "params": {"dirpath": directory, **HISTORY_PARAMS},
        }
    for name, given in block.items():
        if given is None:
            configs.pop(name, None)
            continue
        params = given.get("params") or {}
        default = configs.get(name, {})
        if default and _is_same(given.get("target", default["target"]), default["target"]):
            if name == HISTORY and "monitor" in params:  # ours is of the step alone
                default = default | {"params": {**default["params"], "mode": "min"}}
            params = default["params"] | params
        configs[name] = default | given | {"params": params}
        _check_callback(configs[name], f"lightning.callbacks.{name}")
    return configs


def _check_callback(config: Mapping[str, Any], path: str) -> None:
    if "target" not in config:  # a name that is none of ours
        raise ConfigError(f"{path}: expected a mapping with a target, got {', '.join(config)}")
    constructor = locate(config["target"])
    problems = parameter_problems(
        constructor, config["params"], path=f"{path}.params", stage="part"
    )
    if found := list(problems):
        raise ConfigError("\n".join(found))


def _callbacks(block: Mapping[str, Any], run: RunDir, *, plain: bool) -> list[Callback]:
    """The callbacks of `callback_configs`; plain: only those that the YAML adds."""
    defaults = _default_callbacks(run)
    return [
        instantiate_from_config(config, path=f"lightning.callbacks.{name}")
        for name, config in callback_configs(block, run).items()
        if not (plain and name in defaults)
    ]


def _is_same(target: str, other: str) -> bool:
    """Whether two dotted paths lead to the same class."""
    return locate(target) is locate(other)
