"""Show what a first stage keeps of your images, and measure what it loses.

python scripts/reconstruct.py logs/FIRST photographs/
python scripts/reconstruct.py model.ckpt --config model.yaml a.jpg b.png --size 512
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ldm.cli.exits import exit_code
from ldm.cli.first_stages import (
    LoadedFirstStage,
    add_judge,
    add_running,
    judge_of,
    load_first_stage,
    versions,
)
from ldm.cli.sampling import autocast, check_least, device_of, output_directory
from ldm.evaluation.first_stage import Judge, Judged, judged
from ldm.evaluation.pictures import Pictures, image_files
from ldm.evaluation.sheets import Pixels, captioned_sheet, heat_map
from ldm.log import log

ROWS = 16  # images on the sheet


def reconstruct(argv: Sequence[str]) -> None:
    """Parse the command line, reconstruct, measure, write."""
    args = _parse(argv)
    check_least(args, size=1, seed=0)
    device, paths = device_of(args.device), image_files(args.images)
    first = load_first_stage(
        args.run, args.config, device=device, weights=args.weights, trusted=args.trust
    )
    judge = judge_of(args, device)
    pictures = Pictures(paths, first.channels, args.size)
    out = output_directory(args.out)
    rows: list[list[tuple[Pixels, str]]] = []
    entries: list[dict[str, Any]] = []
    began = time.perf_counter()
    with tqdm(total=len(pictures), unit="image") as bar, autocast(device, args.precision):
        seed = args.seed if args.sample else None
        for found in judged(first.module, pictures, judge, device=device, seed=seed):
            bar.update(len(entries) + 1 + len(pictures.bad) - bar.n)
            file = f"{len(entries):05}_{Path(found.name).stem}.png"
            _save(found.reconstruction.numpy(), out / file)
            entries.append(_entry(found, file))
            if len(rows) < ROWS:
                rows.append(_row(found))
        bar.update(len(pictures) - bar.n)
    _save(captioned_sheet(rows), out / "sheet.png")
    record = _record(args, first, judge, pictures, entries)
    record["seconds"] = round(time.perf_counter() - began, 3)
    (out / "record.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    _report(record, out)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What a first stage keeps of your images.")
    add = parser.add_argument
    add("run", metavar="RUN", help="run directory, or checkpoint, of a first stage or with one")
    add("images", nargs="+", metavar="IMAGES", help="image files, and directories of them")
    add("--config", metavar="YAML", help="configuration of a checkpoint outside a run")
    add("--out", metavar="DIR", default="outputs/reconstruct", help="where all is written")
    add("--size", type=int, help="the square in the centre at this side; default: as it is")
    add("--weights", choices=("ema", "raw"), default="ema", help="averaged, or as trained last")
    add("--sample", action="store_true", help="a sample of the posterior, not its mode (KL)")
    add("--seed", type=int, default=0, help="of the samples")
    add_judge(parser)
    add_running(parser)
    return parser.parse_args(argv)


def _save(pixels: Pixels, path: Path) -> None:
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path)


def _entry(found: Judged, file: str) -> dict[str, Any]:
    height, width = found.image.shape[:2]
    return {
        "image": found.name,
        "file": file,
        "size": [height, width],
        "latent": list(found.latent),
        "numbers": int(np.prod(found.latent)),
        **found.measures,
    }


def _row(found: Judged) -> list[tuple[Pixels, str]]:
    """Image, reconstruction and where they differ, with what is to be said of each."""
    image, made = found.image.numpy(), found.reconstruction.numpy()
    heat, most = heat_map(image, made)
    channels, height, width = found.latent
    numbers = [f"PSNR {found.measures['psnr']:.2f} dB"]
    numbers += [f"{k.upper()} {v:.3f}" for k, v in found.measures.items() if k != "psnr"]
    return [
        (image, f"{Path(found.name).name}\n{image.shape[0]} x {image.shape[1]} pixels"),
        (made, f"latent {channels} x {height} x {width}\n" + "  ".join(numbers)),
        (heat, f"error: black 0, red, yellow,\nwhite {most} of 255 grey levels"),
    ]


def _record(
    args: argparse.Namespace,
    first: LoadedFirstStage,
    judge: Judge,
    pictures: Pictures,
    entries: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "first_stage": first.facts,
        "precision": args.precision,
        "device": str(device_of(args.device)),
        "latents": f"posterior samples, seed {args.seed}" if args.sample else "the most likely",
        "compared": "uint8, the reconstruction rounded as in its file",
        "summary": judge.summary(),
        "bad": pictures.bad,
        "images": list(entries),
        "versions": versions(),
    }


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


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


if __name__ == "__main__":
    sys.exit(exit_code(reconstruct))
