"""The statistics of a first stage's latents, measured and written."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ldm.autoencoders.scaling import LatentMoments
from ldm.autoencoders.statistics import LatentStatistics
from ldm.cli.first_stages import load_first_stage, versions
from ldm.cli.image_format import pixel_formats
from ldm.cli.rundir import run_of
from ldm.cli.running import autocast, check_least, device_of
from ldm.config import ConfigError
from ldm.data.substitutes import Substituted
from ldm.evaluation.latents import image_set, set_latents
from ldm.log import log

__all__ = ["STATISTICS_FILE", "measure_latents"]

STATISTICS_FILE = "latent_stats.json"
SIDE = 256  # pixels, where neither flag nor configuration says


def measure_latents(args: argparse.Namespace) -> LatentStatistics:
    """Encode what the flags of `scripts/latent_stats.py` say; write and return the statistics.

    Raises ConfigError for what the user got wrong.
    """
    check_least(args, n=2, size=1, batch_size=1, num_workers=0, seed=0)
    device = device_of(args.device)
    # a second stage loads the weights as trained last
    first = load_first_stage(
        args.run, args.config, device=device, weights="raw", trusted=args.trust
    )
    (pixels,) = pixel_formats([first], args)
    if (args.dtype or args.value_range) and not Path(args.data).is_dir():
        raise ConfigError(
            f"--dtype and --value-range: the configuration {args.data} says how images are read"
        )
    found = image_set(args.data, pixels=pixels, size=args.size, default_size=first.size or SIDE)
    data = Substituted(found)  # as training does
    order = np.random.default_rng(args.seed).permutation(len(data))
    indices = sorted(order[: args.n].tolist())
    if len(indices) < args.n:
        log.info("%s has %d images, fewer than --n %d: all are taken", args.data, len(data), args.n)
    moments, latent = LatentMoments(), (0, 0, 0)
    latents = set_latents(
        first.module,
        data,
        indices=indices,
        source=args.data,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        device=device,
    )
    with autocast(device, args.precision), tqdm(total=len(indices), unit="image") as bar:
        for z in latents:
            moments.update(z)
            latent = (z.shape[1], z.shape[2], z.shape[3])
            bar.update(len(z))
    try:
        moments.scale()
    except ValueError as error:
        raise ConfigError(f"{args.run}: {error}") from error
    details = {"data": str(args.data), "seed": args.seed, "precision": args.precision}
    stats = LatentStatistics.of(
        moments,
        checkpoint=first.checkpoint.resolve(),
        sha256=first.sha256,
        images=len(indices),
        latent=latent,
        details={"first_stage": first.facts, **details, "versions": versions()},
    )
    beside = run_of(args.run) or first.checkpoint.parent
    _write(stats, Path(args.out) if args.out else beside / STATISTICS_FILE)
    return stats


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
