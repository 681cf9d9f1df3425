"""Where and how a script runs its networks: device, precision, output directory."""

from __future__ import annotations

import argparse
import tempfile
from math import isfinite
from pathlib import Path

import torch

from ldm.config import ConfigError

__all__ = ["autocast", "check_finite", "check_least", "device_of", "output_directory"]


def check_least(args: argparse.Namespace, **least: int) -> None:
    """Raise ConfigError for a flag below the least value that it takes."""
    for name, value in least.items():
        given = getattr(args, name)
        if given is not None and given < value:
            raise ConfigError(f"--{name.replace('_', '-')} {given}: expected {value} or more")


def check_finite(args: argparse.Namespace) -> None:
    """Raise ConfigError for a flag that is not a number, or an infinite one."""
    for name, value in vars(args).items():
        numbers = value if isinstance(value, list) else [value]
        if not all(isfinite(each) for each in numbers if isinstance(each, float)):
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} {' '.join(map(str, numbers))}: expected a number")


def device_of(name: str) -> torch.device:
    """The device of a flag `--device`; ConfigError for none, or one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name}: expected cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices")
    return device


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a flag `--precision`: fp32, or bf16 matrix products."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def output_directory(path: str) -> Path:
    """The directory, made where there is none; ConfigError where nothing can be written."""
    out = Path(path)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        what = f"expected a directory to write to: {error.strerror}"
        raise ConfigError(f"--out {out}: {what}") from error
    return out
