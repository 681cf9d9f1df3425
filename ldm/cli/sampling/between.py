"""A way from the noise of one seed to that of another, in equal shares."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from ldm.cli.sampling.entries import Item
from ldm.cli.sampling.sizes import latent_size
from ldm.config import ConfigError
from ldm.diffusion.interpolation import slerp
from ldm.models.diffusion.sampling import SampleOptions, starting_noise

__all__ = ["add_between", "going_between", "noise_between"]


def add_between(parser: argparse.ArgumentParser) -> None:
    """Add the flag."""
    parser.add_argument_group("where it begins").add_argument(
        "--between",
        type=int,
        nargs=2,
        metavar=("SEED", "SEED"),
        help="--n images on the way from the noise of one seed to that of another, both included",
    )


def going_between(args: argparse.Namespace, items: list[Item]) -> list[Item]:
    """The items, `--n` of each caption or class in turn, on their way if `--between` asks for one.

    Every item gets the first seed and `towards`, the other seed and the share of it, 0 to 1.
    Raises ConfigError for a way of less than 2 images, and for seeds that are none.
    """
    if args.between is None:
        return items
    first, other = args.between
    if first < 0 or other < 0:
        raise ConfigError(f"--between {first} {other}: expected seeds, 0 or more")
    if args.seed != 0:
        raise ConfigError(f"--seed {args.seed} and --between: seeds are those of --between")
    if args.n < 2:
        raise ConfigError(f"--n {args.n}: expected 2 or more, as both ends are drawn")
    shares = [index / (args.n - 1) for index in range(args.n)]
    return [
        {"seed": first, "towards": [other, shares[index % args.n]], **item}
        for index, item in enumerate(items)
    ]


def noise_between(model: Any, args: argparse.Namespace, items: Sequence[Item]) -> SampleOptions:
    """The noise that items begin with, as an option of `sample`, if they are on a way."""
    if "towards" not in items[0]:
        return {}
    size = latent_size("size", args.size, model)
    others, shares = zip(*(item["towards"] for item in items), strict=True)
    first = starting_noise(model, [item["seed"] for item in items], size)
    last = starting_noise(model, others, size)
    return {"noise": slerp(first, last, torch.tensor(shares, dtype=torch.float64))}
