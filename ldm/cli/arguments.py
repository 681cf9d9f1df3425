"""The training command's flags, typed: the published ones, ours, and those of Lightning's Trainer.

Nothing heavy is imported here, so `--help` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from ldm.config import ConfigError

__all__ = ["TRAINER_FLAGS", "Arguments", "Devices", "parse", "parse_devices"]

TRAINER_FLAGS = (
    "accelerator",
    "strategy",
    "devices",
    "num_nodes",
    "precision",
    "fast_dev_run",
    "max_epochs",
    "min_epochs",
    "max_steps",
    "min_steps",
    "max_time",
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
    "limit_predict_batches",
    "overfit_batches",
    "val_check_interval",
    "check_val_every_n_epoch",
    "num_sanity_val_steps",
    "log_every_n_steps",
    "enable_checkpointing",
    "enable_progress_bar",
    "enable_model_summary",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "deterministic",
    "benchmark",
    "inference_mode",
    "profiler",
    "detect_anomaly",
    "barebones",
    "sync_batchnorm",
    "reload_dataloaders_every_n_epochs",
    "default_root_dir",
)

# flags of the 2022 release's Trainer that went away, and what to give instead
_REMOVED = {
    "auto_select_gpus": "--gpus or --devices",
    "tpu_cores": "--accelerator tpu --devices N",
    "replace_sampler_ddp": "nothing: the loader's sampler is always distributed",
    "track_grad_norm": "nothing: gradient norms are logged",
    "auto_lr_find": "model.learning_rate=VALUE",
    "amp_backend": "--precision",
    "amp_level": "--precision",
    "terminate_on_nan": "--detect_anomaly true",
    "progress_bar_refresh_rate": "--enable_progress_bar",
    "weights_summary": "--enable_model_summary",
    "distributed_backend": "--strategy",
    "checkpoint_callback": "--enable_checkpointing",
}


@dataclass(frozen=True)
class Devices:
    """Where to train: Lightning's `accelerator` and `devices`."""

    accelerator: str
    devices: int | list[int]

    @property
    def count(self) -> int:
        """Number of devices on this machine; 0 stands for "all there are"."""
        return len(self.devices) if isinstance(self.devices, list) else max(self.devices, 0)


@dataclass(frozen=True)
class Arguments:
    """The parsed command line. `trainer` holds Lightning's flags, `overrides` the dotlist."""

    base: list[str]
    name: str | None
    resume: str | None
    train: bool
    no_test: bool
    debug: bool
    seed: int
    postfix: str
    logdir: str
    scale_lr: bool
    devices: Devices | None
    compile: bool
    trust: list[str]
    trainer: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)


def parse(argv: Sequence[str]) -> Arguments:
    """Read the command line.

    Raises ConfigError that names the flag, its value and what was expected.
    """
    options, rest = _parser().parse_known_args(list(argv))
    trainer, overrides = _trainer_flags(rest)
    resume_from = trainer.pop("resume_from_checkpoint", None)
    if options.name and options.resume:
        raise ConfigError(
            "-n/--name starts a new run and -r/--resume goes on with one; give one of them "
            "(--resume_from_checkpoint FILE with -n goes on in a new directory)"
        )
    devices = parse_devices(options.gpus) if options.gpus is not None else None
    return Arguments(
        base=options.base,
        name=options.name,
        resume=options.resume,
        train=options.train,
        no_test=options.no_test,
        debug=options.debug,
        seed=options.seed,
        postfix=options.postfix,
        logdir=options.logdir,
        scale_lr=options.scale_lr,
        devices=devices,
        compile=options.compile,
        trust=options.trust,
        trainer=trainer | ({"ckpt_path": resume_from} if resume_from else {}),
        overrides=overrides,
    )


def parse_devices(text: str) -> Devices:
    """The published `--gpus`: `0,` and `0,1` are indices, `2` a count, `-1` all, `cpu` none.

    Raises ConfigError when the text is none of these.
    """
    text = text.strip().lower()
    if text in ("cpu", "0", ""):
        return Devices("cpu", 1)
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers or any(number < -1 for number in numbers):
        raise ConfigError(f"--gpus {text!r}: expected `0,` or `0,1` (which), `2`, `-1` or `cpu`")
    if -1 in numbers:
        return Devices("gpu", -1)
    return Devices("gpu", numbers if "," in text else numbers[0])


def _bool(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "y", "t", "on"):
        return True
    if text.lower() in ("0", "false", "no", "n", "f", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ConfigError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="main.py",
        description="Train a first stage or a diffusion model from YAML.",
        epilog="Any argument of Lightning's Trainer is a flag too: "
        + ", ".join(f"--{name}" for name in TRAINER_FLAGS)
        + ". Words of the form a.b.c=value override the configuration and come last.",
        allow_abbrev=False,
    )
    switch: dict[str, Any] = {"type": _bool, "nargs": "?", "const": True, "metavar": "BOOL"}
    add = parser.add_argument
    add("-b", "--base", nargs="*", default=[], metavar="YAML", help="merged from left to right")
    add("-t", "--train", default=False, help="train", **switch)
    add("-n", "--name", nargs="?", const="", help="last part of the run directory's name")
    add("-r", "--resume", metavar="PATH", help="go on with this run directory or checkpoint")
    add("-l", "--logdir", default="logs", metavar="DIR", help="where run directories go (logs)")
    add("-s", "--seed", type=int, default=23, help="of weights, order, noise and times (23)")
    add("-f", "--postfix", default="", help="appended to the run directory's name")
    add("-d", "--debug", default=False, help="stop in the debugger at an exception", **switch)
    add("--no-test", default=False, help="skip the test set at the end", **switch)
    add("-p", "--project", help="accepted for compatibility, unused")
    add(
        "--scale_lr",
        default=True,
        help="multiply base_learning_rate by devices x batch size x accumulation (true)",
        **switch,
    )
    add("--gpus", metavar="WHICH", help="`0,` or `0,1`: which; `2`: how many; `-1`: all; `cpu`")
    add("--compile", default=False, help="compile the networks (CUDA)", **switch)
    add(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="allow `target:` to name code of this package",
    )
    return parser


def _trainer_flags(rest: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Split what the parser left into Trainer flags and `a.b=value` overrides."""
    flags: dict[str, Any] = {}
    overrides: list[str] = []
    words = list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            overrides.append(word)
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        name = _known_flag(name.replace("-", "_"))
        if not equals:
            has_value = bool(words) and not words[0].startswith("--")
            value = words.pop(0) if has_value else "true"
        flags[name] = yaml.safe_load(value)
    return flags, overrides


def _known_flag(name: str) -> str:
    if name in TRAINER_FLAGS or name == "resume_from_checkpoint":
        return name
    if name in _REMOVED:
        raise ConfigError(f"--{name} is gone from Lightning; give {_REMOVED[name]}")
    ours = [
        option[2:]
        for action in _parser()._actions
        for option in action.option_strings
        if option.startswith("--")
    ]
    near = difflib.get_close_matches(name, [*TRAINER_FLAGS, *ours], n=1)
    hint = f"; did you mean --{near[0]}?" if near else "; see --help"
    raise ConfigError(f"unknown flag --{name}{hint}")
