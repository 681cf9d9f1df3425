"""Stages of a demonstration, each trained by main.py as a user would."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from ldm.cli.arguments import parse_devices
from ldm.cli.running import check_least
from ldm.config import ConfigError, load, to_plain

__all__ = ["add_training", "is_on_cpu", "run_script", "train_stage"]

_BATCH = "data.params.batch_size"
_STEPS = "lightning.trainer.max_steps"
_DECAY = "model.params.scheduler_config.params.max_decay_steps"


def add_training(parser: argparse.ArgumentParser, logdir: str) -> None:
    """Add the flags of training: where, for how long, on what, from which seed."""
    add = parser.add_argument
    add("--logdir", default=logdir, help="where everything goes")
    add("--longer", type=float, default=1.0, help="factor on the optimizer steps of each stage")
    add("--gpus", default="cpu", help="as for main.py")
    # networks this small gain little from threads
    add("--processes", type=int, default=2, help="on the CPU, each with its share of a batch")
    add("--seed", type=int, default=23, help="seed of training and of the first picture")


def is_on_cpu(args: argparse.Namespace) -> bool:
    """Whether the flag `--gpus` names none."""
    return parse_devices(args.gpus).accelerator == "cpu"


def train_stage(path: Path, args: argparse.Namespace, *overrides: str) -> Path:
    """Train a configuration by the command line; returns its run directory.

    On the CPU by as many processes as asked for, each with its share of a batch. Its learning rate
    decays over all of its steps.

    Ends the script, as the command line ended, when that failed: it has said why.
    Raises ConfigError for a factor on the steps that is none, and for no process.
    """
    check_least(args, processes=1)
    if args.longer <= 0:
        raise ConfigError(f"--longer {args.longer}: expected more than 0")
    pattern = f"*_{path.stem}"
    before = set(Path(args.logdir).glob(pattern))
    run_script("main.py", *_command_line(path, args), *overrides)
    (run,) = set(Path(args.logdir).glob(pattern)) - before
    return run


def run_script(*words: str) -> None:
    """Run a script of the project with these words, on one thread.

    Ends this one, as that ended, when it failed: it has said why.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, *words], env=environment) as script:
        try:
            code = script.wait()
        except KeyboardInterrupt:
            code = script.wait()  # Ctrl-C has reached it, too: it saves and ends
    if code:
        raise SystemExit(code)


def _command_line(path: Path, args: argparse.Namespace) -> list[str]:
    config = to_plain(load([path]))
    steps = round(config["lightning"]["trainer"]["max_steps"] * args.longer)
    if is_on_cpu(args):
        processes = min(args.processes, os.cpu_count() or 1)
        share = config["data"]["params"]["batch_size"] // processes
        where = ["--accelerator", "cpu", "--devices", str(processes), f"{_BATCH}={share}"]
    else:
        where = ["--gpus", args.gpus]
    flags = ["-t", "--base", str(path), "--logdir", args.logdir, "--seed", str(args.seed)]
    return [*flags, *where, f"{_STEPS}={steps}", f"{_DECAY}={steps}"]
