"""What a first stage keeps of image files: reconstructions, a sheet and a record."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ldm.cli.first_stages import judge_of, load_first_stage, versions
from ldm.cli.image_format import format_facts, lpips_channels, pixel_formats
from ldm.cli.running import autocast, check_least, device_of, output_directory
from ldm.evaluation.first_stage import judged
from ldm.evaluation.pictures import Pictures, image_files
from ldm.evaluation.reconstructions import write_reconstructions
from ldm.log import log

__all__ = ["reconstruct_and_write"]


def reconstruct_and_write(args: argparse.Namespace) -> dict[str, Any]:
    """Reconstruct, measure and write what the flags of `scripts/reconstruct.py` say; the record.

    Raises ConfigError for what the user got wrong.
    """
    check_least(args, size=1, seed=0)
    device = device_of(args.device)
    first = load_first_stage(
        args.run, args.config, device=device, weights=args.weights, trusted=args.trust
    )
    (pixels,) = pixel_formats([first], args)
    paths = image_files(args.images, pixels.extensions)
    judge = judge_of(args, device, lpips_channels([first], args))
    pictures = Pictures(paths, pixels, args.size)
    out = output_directory(args.out)
    seed = args.seed if args.sample else None
    began = time.perf_counter()
    with tqdm(total=len(pictures), unit="image") as bar, autocast(device, args.precision):

        def show(done: int) -> None:
            bar.update(done + len(pictures.bad) - bar.n)

        found = judged(first.module, pictures, judge, device=device, seed=seed)
        entries = write_reconstructions(found, out, pixels=pixels, on_image=show)
        show(len(entries))
    record = {
        "first_stage": first.facts,
        "precision": args.precision,
        "device": str(device),
        "latents": f"posterior samples, seed {args.seed}" if args.sample else "the most likely",
        "pixels": format_facts(pixels),
        "summary": judge.summary(),
        "bad": pictures.bad,
        "images": entries,
        "versions": versions(),
        "seconds": round(time.perf_counter() - began, 3),
    }
    (out / "record.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    _report(record, out)
    return record


def _report(record: dict[str, Any], out: Path) -> None:
    summary = record["summary"]
    means = [f"{k} {summary[k]['mean']:.4g}" for k in ("psnr", "ssim", "lpips") if k in summary]
    means += [f"{k} {v['value']:.4g}" for k, v in summary.items() if "value" in _mapping(v)]
    log.info("%d images: %s", summary["images"], ", ".join(means))
    for name, why in summary["left_out"].items():
        log.info("%s was not measured: %s", name, why)
    if record["bad"]:
        log.warning("%d files were left out: %s", len(record["bad"]), ", ".join(record["bad"]))
    log.info("%s: reconstructions, sheet.png, record.json", out)


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
