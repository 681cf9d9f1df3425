"""Measure the latents of a first stage, for the scale that a second stage divides them by.

python scripts/latent_stats.py logs/FIRST --data photographs/
python scripts/latent_stats.py logs/FIRST --data configs/ldm-kl-f8.yaml --n 50000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from ldm.autoencoders.scaling import LatentMoments
from ldm.autoencoders.statistics import LatentStatistics
from ldm.cli.exits import exit_code
from ldm.cli.first_stages import (
    LoadedFirstStage,
    add_running,
    load_first_stage,
    versions,
)
from ldm.cli.rundir import run_of
from ldm.cli.sampling import autocast, check_least, device_of
from ldm.config import ConfigError, did_you_mean, instantiate_from_config, load
from ldm.data.folder import ImageFolder
from ldm.evaluation.first_stage import diffused_latents
from ldm.log import log
from ldm.tensor import to_image_tensor

FILE = "latent_stats.json"
SIDE = 256  # pixels, where neither flag nor configuration says


def latent_stats(argv: Sequence[str]) -> None:
    """Parse the command line, encode, write the statistics."""
    args = _parse(argv)
    check_least(args, n=2, size=1, batch_size=1, num_workers=0, seed=0)
    device = device_of(args.device)
    # a second stage loads the weights as trained last
    first = load_first_stage(
        args.run, args.config, device=device, weights="raw", trusted=args.trust
    )
    data = _data(args, first)
    order = np.random.default_rng(args.seed).permutation(len(data))
    indices = sorted(order[: args.n].tolist())
    if len(indices) < args.n:
        log.info("%s has %d images, fewer than --n %d: all are taken", args.data, len(data), args.n)
    moments, latent = LatentMoments(), (0, 0, 0)
    with torch.no_grad(), autocast(device, args.precision):
        for z in _latents(args, first, data, indices, device):
            moments.update(z)
            latent = (z.shape[1], z.shape[2], z.shape[3])
    try:
        moments.scale()
    except ValueError as error:
        raise ConfigError(f"{args.run}: {error}") from error
    stats = LatentStatistics.of(
        moments,
        checkpoint=first.checkpoint.resolve(),
        sha256=first.sha256,
        images=len(indices),
        latent=latent,
        details={
            "first_stage": first.facts,
            "data": str(args.data),
            "seed": args.seed,
            "precision": args.precision,
            "versions": versions(),
        },
    )
    path = Path(args.out) if args.out else (run_of(args.run) or first.checkpoint.parent) / FILE
    _write(stats, path)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Moments of a first stage's unscaled latents.")
    add = parser.add_argument
    add("run", metavar="RUN", help="run directory, or checkpoint, of a first stage")
    add("--config", metavar="YAML", help="configuration of a checkpoint outside a run")
    add("--data", required=True, help="directory of images, or a configuration with a train set")
    add("--n", type=int, default=10_000, help="images, drawn from all without replacement")
    add("--size", type=int, help="side of images of a directory; default: as trained")
    add("--batch-size", type=int, default=16, help="images encoded together")
    add("--num-workers", type=int, default=0, help="processes that read images")
    add("--seed", type=int, default=0, help="of the choice of images")
    add("--out", metavar="FILE", help=f"default: {FILE} in the run, or beside the checkpoint")
    add_running(parser)
    return parser.parse_args(argv)


def _data(args: argparse.Namespace, first: LoadedFirstStage) -> Any:
    """The data set of a directory, or the training set of a configuration."""
    if Path(args.data).is_dir():
        size = args.size or first.size or SIDE
        return ImageFolder(args.data, size, split="all", channels=first.channels)
    if args.size is not None:
        raise ConfigError(f"--size {args.size}: the configuration {args.data} says the size")
    config = load([args.data])
    if config.get("data") is None:
        raise ConfigError(f"{args.data}: there is no `data:` block in it")
    module = instantiate_from_config(config["data"], path="data")
    module.setup()
    if "train" not in module.datasets:
        raise ConfigError(f"{args.data}: data.params has no `train:` set")
    return module.datasets["train"]


def _latents(
    args: argparse.Namespace,
    first: LoadedFirstStage,
    data: Any,
    indices: list[int],
    device: torch.device,
) -> Iterator[Tensor]:
    """Latents (B, c, h, w) of the chosen images, with a bar that shows the time left.

    The noise of a posterior's sample depends on the image's index alone.
    """
    key = getattr(first.module, "image_key", "image")
    sample = data[indices[0]]
    if key not in sample:
        near = did_you_mean(key, sample)
        raise ConfigError(f"{args.data}: has no {key!r} but {', '.join(sorted(sample))}{near}")

    def images(samples: Sequence[dict[str, Any]]) -> Tensor:
        return torch.from_numpy(np.stack([np.asarray(each[key]) for each in samples]))

    loader: Any = DataLoader(
        Subset(data, indices),
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        collate_fn=images,
    )
    starts = range(0, len(indices), args.batch_size)
    with tqdm(total=len(indices), unit="image") as bar:
        for start, batch in zip(starts, loader, strict=True):
            given = to_image_tensor(batch.to(device))
            try:
                z = diffused_latents(first.module, given, indices[start : start + len(batch)])
            except ValueError as error:
                raise ConfigError(f"{args.data}: {error}") from error
            yield z
            bar.update(len(batch))


def _write(stats: LatentStatistics, path: Path) -> None:
    try:
        stats.write(path)
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be written: {error.strerror}") from error
    for name, each in [
        *((f"channel {i}", channel) for i, channel in enumerate(stats.channels)),
        ("all", stats.overall),
    ]:
        log.info("%s: mean %.4g, std %.4g, skew %.4g", name, each.mean, each.std, each.skew)
    log.info(
        "%d images: scale_factor = 1 / std = %.5g; for a second stage: latent_stats: %s",
        stats.images,
        stats.scale_factor,
        path,
    )


if __name__ == "__main__":
    sys.exit(exit_code(latent_stats))
