"""The training command's flags, typed: the published ones, ours, and those of Lightning's Trainer.

Nothing heavy is imported here, so `--help` answers at once.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.config import ConfigError, nearest

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
    "enable_autolog_hparams",
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

_TEXTS = ("max_time",)  # YAML would read 12:00:00 as a number in base 60

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


@dataclass(frozen=True)
class Arguments:
    """The parsed command line.

    test: true demands a test set, false leaves it out, None takes what there is.
    auto_resume: go on with the newest run of the name, if there is one.
    seed: None leaves it to the configuration.  gpus: as given, but known to be valid.
    trainer: arguments of Lightning's Trainer.  overrides: of the form `a.b.c=value`.
    """

    base: list[str] = field(default_factory=list)
    name: str | None = None
    resume: str | None = None
    resume_from_checkpoint: str | None = None
    auto_resume: bool = False
    train: bool = False
    check: bool = False
    profile: int = 0
    format: str = "text"
    test: bool | None = None
    debug: bool = False
    seed: int | None = None
    postfix: str = ""
    logdir: str = "logs"
    scale_lr: bool = True
    gpus: str | None = None
    compile: bool = False
    trust: list[str] = field(default_factory=list)
    trainer: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)


def parse(argv: Sequence[str]) -> Arguments:
    """Read the command line.

    Raises ConfigError that names the flag, its value and what was expected.
    """
    words, overrides = _split(argv)
    options, rest = _parser().parse_known_args(words)
    for word in rest:
        _refuse(word)
    given = vars(options)
    trainer = {name: given.pop(name) for name in TRAINER_FLAGS if name in given}
    if options.name and options.resume:
        raise ConfigError(
            "-n/--name starts a new run and -r/--resume goes on with one; give one of them "
            "(--resume_from_checkpoint FILE with -n goes on in a new directory)"
        )
    _check_auto_resume(options)
    if options.resume and options.resume_from_checkpoint:
        raise ConfigError("--resume and --resume_from_checkpoint exclude each other; give one")
    if options.seed is not None and not 0 <= options.seed < 2**32:
        raise ConfigError(f"--seed {options.seed}: expected 0 to 2^32 - 1")
    test = given.pop("test")
    if given.pop("no_test"):
        if test:
            raise ConfigError("--test and --no-test exclude each other; give one of them")
        test = False
    del given["project"]
    if options.gpus is not None:
        parse_devices(options.gpus)
        if others := {"accelerator", "devices"} & trainer.keys():
            raise ConfigError(
                f"--gpus and --{min(others)} both say where to train; give --gpus, or "
                "--accelerator and --devices"
            )
    return Arguments(**given, test=test, trainer=trainer, overrides=overrides)


def _check_auto_resume(options: argparse.Namespace) -> None:
    if not options.auto_resume:
        return
    if options.resume:
        raise ConfigError(
            f"--auto-resume finds the run by its name, and -r {options.resume} names it; give one"
        )
    if not options.name:
        raise ConfigError(
            "--auto-resume goes on with the newest run of a name, or starts it; give one with -n "
            "NAME"
        )
    if "/" in options.name + options.postfix:
        raise ConfigError(
            f"--auto-resume: looks for {options.name}{options.postfix} in the log directory "
            "itself; expected no / in -n and -f"
        )


def parse_devices(gpus: str | int | list[int]) -> Devices:
    """The published `--gpus`: `0,` and `0,1` are indices, `2` a count, `-1` all, `cpu` none.

    gpus: as on the command line, or a number or list of indices as in YAML.
    Raises ConfigError when it is none of these.
    """
    text = ",".join(map(str, gpus)) + "," if isinstance(gpus, list) else str(gpus)
    text = text.strip().lower()
    if text in ("cpu", "0", ""):
        return Devices("cpu", 1)
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    is_repeated = len(set(numbers)) < len(numbers)
    if not numbers or is_repeated or any(number < -1 for number in numbers):
        raise ConfigError(
            f"--gpus {text!r}: expected `0,` or `0,1` (which), `2` (how many), `-1` (all) or `cpu`"
        )
    if -1 in numbers:
        return Devices("gpu", -1)
    return Devices("gpu", numbers if "," in text else numbers[0])


_OVERRIDE = re.compile(r"\w+(\.\w+)*=")
_UNDERSCORED = ("scale_lr", "resume_from_checkpoint", "auto_resume")
_TAKES_TEXT = ("-n", "--name", "-f", "--postfix", "-l", "--logdir", "-p", "--project")


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags with their values, and `a.b=value` overrides, wherever these stand.

    Else a flag with an optional value, such as `-t`, would take the override after it.
    """
    words: list[str] = []
    overrides: list[str] = []
    for word in argv:
        is_value = bool(words) and words[-1] in _TAKES_TEXT
        is_override = _OVERRIDE.match(word) is not None and not is_value
        if is_override:
            overrides.append(word)
        else:
            words.append(word if is_value else _underscored(word))
    return words, overrides


def _underscored(word: str) -> str:
    """`--max-steps` as `--max_steps`, which is how the published flags are written."""
    flag, equals, value = word.partition("=")
    name = flag.removeprefix("--").replace("-", "_")
    is_known = flag.startswith("--") and name in (*TRAINER_FLAGS, *_UNDERSCORED)
    return f"--{name}{equals}{value}" if is_known else word


def _bool(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "y", "t", "on"):
        return True
    if text.lower() in ("0", "false", "no", "n", "f", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def _value(text: str) -> Any:
    """A flag's value as YAML reads it, where 1e-3 is a number as well."""
    try:
        return OmegaConf.from_dotlist([f"value={text}"])["value"]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid YAML") from error


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ConfigError(message)


_SWITCH: dict[str, Any] = {"type": _bool, "nargs": "?", "const": True, "metavar": "BOOL"}


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="main.py",
        usage="main.py -b CONFIG.yaml ... -t [flags] [a.b.c=value ...]\n"
        "       main.py -r RUN -t [flags] [a.b.c=value ...]",
        description="Train a first stage or a diffusion model from YAML.\n"
        "Words of the form a.b.c=value override what the YAML files say. "
        "BOOL is true or false;\na flag without it is true.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    _add_run_flags(parser.add_argument_group("what to do"))
    _add_directory_flags(parser.add_argument_group("where"))
    _add_training_flags(parser.add_argument_group("how"))
    _add_trainer_flags(parser)
    return parser


def _add_run_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("-h", "--help", action="help", help="show this text")
    add(
        "-b",
        "--base",
        nargs="*",
        default=[],
        action="extend",
        metavar="YAML",
        help="configuration; several are merged from left to right",
    )
    add("-t", "--train", default=False, help="train; without it the start is checked", **_SWITCH)
    add(
        "--test", default=None, help="run the test set (after training, if there is one)", **_SWITCH
    )
    add("--check", default=False, help="report everything wrong and what training takes", **_SWITCH)
    add("--format", default="text", choices=("text", "json"), help="of what --check reports (text)")
    add("--profile", type=int, default=0, metavar="N", help="with --check, time N real steps")
    add("--no-test", default=False, help="skip the test set", **_SWITCH)
    add("-r", "--resume", metavar="PATH", help="go on with this run directory or checkpoint of one")
    add(
        "--resume_from_checkpoint",
        metavar="CKPT",
        help="go on from this checkpoint in a new directory",
    )
    add(
        "--auto_resume",
        default=False,
        help="go on with the newest run of this -n NAME, or start it: for schedulers, which say "
        "the same words each time",
        **_SWITCH,
    )
    add("-d", "--debug", default=False, help="stop in the debugger at an exception", **_SWITCH)


def _add_directory_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("-l", "--logdir", default="logs", metavar="DIR", help="where run directories go (logs)")
    add(
        "-n",
        "--name",
        nargs="?",
        const="",
        help="last part of the run directory's name (that of the first YAML file)",
    )
    add("-f", "--postfix", default="", metavar="TEXT", help="appended to that name")
    add("-p", "--project", help="accepted for compatibility, unused")


def _add_training_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--gpus", metavar="WHICH", help="`0,` or `0,1`: which; `2`: how many; `-1`: all; `cpu`")
    add("-s", "--seed", type=int, help="seed of weights, order, noise and times (23)")
    add(
        "--scale_lr",
        default=True,
        help="multiply base_learning_rate by devices x batch size x accumulation (true)",
        **_SWITCH,
    )
    add("--compile", default=False, help="compile the networks", **_SWITCH)
    add(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="allow `target:` to name code of this package",
    )


def _add_trainer_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per argument, listed in a paragraph rather than line by line."""
    names = textwrap.fill(" ".join(f"--{name}" for name in TRAINER_FLAGS), 86)
    group = parser.add_argument_group(
        "arguments of Lightning's Trainer, which then override lightning.trainer of the YAML",
        f"{names}\n(--max_steps 1000; --precision bf16-mixed, 32-true, ...; "
        "--max_time 2h30m or HH:MM:SS since the\nprocess was started: saves, and ends with exit "
        "code 75, which means `start me again`)",
    )
    for name in TRAINER_FLAGS:
        kind: Any = str if name in _TEXTS else _value
        default, hidden = argparse.SUPPRESS, argparse.SUPPRESS
        group.add_argument(
            f"--{name}", type=kind, nargs="?", const=True, default=default, help=hidden
        )


def _refuse(word: str) -> None:
    """Raise ConfigError for a word that is neither a flag nor a flag's value."""
    if not word.startswith("-"):
        raise ConfigError(f"{word!r}: expected a flag, or an override of the form a.b.c=value")
    name = word.lstrip("-").partition("=")[0].replace("-", "_")
    if name in _REMOVED:
        raise ConfigError(f"--{name} is gone from Lightning; give {_REMOVED[name]}")
    known = [option for action in _parser()._actions for option in action.option_strings]
    near = nearest(f"--{name}", known)
    hint = f"; did you mean {near}?" if near else "; see --help"
    raise ConfigError(f"unknown flag {word.partition('=')[0]}{hint}")
