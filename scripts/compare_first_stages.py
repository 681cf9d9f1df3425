"""Send your images through several first stages: one table and one picture.

python scripts/compare_first_stages.py logs/F4 logs/F8 --images photographs/ --size 256
python scripts/compare_first_stages.py a.ckpt=a.yaml logs/F8 --images DIR --unet second-stage.yaml
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from tqdm import tqdm

from ldm.autoencoders.padded import Padded
from ldm.benchmark.first_stages import coding_times, denoising_cost
from ldm.benchmark.setting import Setting
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
from ldm.evaluation.first_stage import Judge, judged
from ldm.evaluation.pictures import Pictures, image_files
from ldm.evaluation.sheets import Pixels, captioned_sheet
from ldm.evaluation.tables import markdown_table
from ldm.log import log
from ldm.tensor import to_image_tensor

ROWS = 8  # images on the sheet


class Contender(NamedTuple):
    """A first stage with what was found about it; `cells` are for the sheet."""

    facts: dict[str, Any]
    cells: list[tuple[Pixels, str]]
    originals: list[tuple[Pixels, str]]


def compare_first_stages(argv: Sequence[str]) -> None:
    """Parse the command line, run every first stage, write table, picture and record."""
    args = _parse(argv)
    check_least(args, size=1, repeats=1)
    device, paths = device_of(args.device), image_files([args.images])
    stages = [_load(word, args, device) for word in args.runs]
    judge = judge_of(args, device)
    judges = [Judge(judge.lpips, judge.extractor) for _ in stages]
    out = output_directory(args.out)
    with tqdm(total=len(paths) * len(stages), unit="image") as bar:
        contenders = [
            _measured(first, judge, paths, args, device, bar)
            for first, judge in zip(stages, judges, strict=True)
        ]
    table = _table([each.facts for each in contenders])
    rows = zip(contenders[0].originals, *(each.cells for each in contenders), strict=True)
    Image.fromarray(captioned_sheet(list(rows))).save(out / "sheet.png")
    (out / "table.md").write_text(table, encoding="utf-8")
    record = {
        "device": str(device),
        "precision": args.precision,
        "threads": torch.get_num_threads(),
        "first_stages": [each.facts for each in contenders],
        "versions": versions(),
    }
    (out / "record.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(table, end="")
    log.info("%s: table.md, sheet.png, record.json", out)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Several first stages on your images.")
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="run directory, checkpoint, or CHECKPOINT=YAML")
    add("--images", required=True, metavar="DIR", help="directory of images")
    add("--unet", metavar="YAML", help="diffusion model whose network's work is counted")
    add("--out", metavar="DIR", default="outputs/compare", help="where all is written")
    add("--size", type=int, help="the square in the centre at this side; default: as it is")
    add("--weights", choices=("ema", "raw"), default="ema", help="averaged, or as trained last")
    add("--repeats", type=int, default=7, help="timed calls, of which the median counts")
    add_judge(parser)
    add_running(parser)
    return parser.parse_args(argv)


def _load(word: str, args: argparse.Namespace, device: torch.device) -> LoadedFirstStage:
    path, _, config = (word, "", "") if Path(word).exists() else word.rpartition("=")
    if not path:  # neither there nor with a configuration: said as of any other path
        path, config = word, ""
    return load_first_stage(
        path, config or None, device=device, weights=args.weights, trusted=args.trust
    )


def _measured(
    first: LoadedFirstStage,
    judge: Judge,
    paths: Sequence[Path],
    args: argparse.Namespace,
    device: torch.device,
    bar: Any,
) -> Contender:
    """Reconstruct, compare and time; the first image that can be read is the one that is timed."""
    pictures = Pictures(paths, first.channels, args.size)
    cells: list[tuple[Pixels, str]] = []
    originals: list[tuple[Pixels, str]] = []
    timed: dict[str, Any] = {}
    with autocast(device, args.precision):
        for found in judged(first.module, pictures, judge, device=device):
            bar.update()
            if not timed:
                timed = _costs(first, found.image[None].to(device), found.latent, args)
            if len(cells) < ROWS:
                name = Path(found.name).name
                size = f"{found.image.shape[0]} x {found.image.shape[1]} pixels"
                originals.append((found.image.numpy(), f"{name}\n{size}"))
                text = f"{first.name}\nPSNR {found.measures['psnr']:.2f} dB"
                cells.append((found.reconstruction.numpy(), text))
    bar.update(len(pictures.bad))
    facts = {**first.facts, **timed, "summary": judge.summary(), "bad": pictures.bad}
    return Contender(facts, cells, originals)


def _costs(
    first: LoadedFirstStage,
    image: torch.Tensor,
    latent: tuple[int, int, int],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Times for one image (1, H, W, C) uint8, and the denoiser's work on its latent."""
    setting = Setting(device=str(image.device), precision=args.precision)
    times = coding_times(
        Padded(first.module), to_image_tensor(image), setting, repeats=args.repeats
    )
    costs: dict[str, Any] = {
        "image": list(image.shape[1:]),
        "latent": list(latent),
        "numbers": latent[0] * latent[1] * latent[2],
    }
    for name, elapsed in (("encode", times.encode), ("decode", times.decode)):
        costs[f"{name}_ms"] = {"wall": 1e3 * elapsed.wall, "processor": 1e3 * elapsed.busy}
    if args.unet:
        cost = denoising_cost(args.unet, latent)
        costs["unet"] = {
            "config": args.unet,
            "gflop_per_step": cost.gflop,
            "latent": list(cost.latent),
        }
    return costs


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """The comparison as a Markdown table; columns that nobody has are left out."""
    columns: dict[str, list[str]] = {
        "first stage": [row["name"] for row in rows],
        "f": [str(row["downsample_factor"]) for row in rows],
        "image": [_shape(row["image"][:2]) for row in rows],
        "latent": [_shape(row["latent"]) for row in rows],
        "numbers": [str(row["numbers"]) for row in rows],
    }
    measures = {"PSNR dB": ("psnr", "mean", 2), "SSIM": ("ssim", "mean", 3)}
    measures |= {"LPIPS": ("lpips", "mean", 3), "rFID": ("rfid", "value", 2)}
    measures |= {"R-IS": ("r_is", "value", 2)}
    measures |= {"Frechet distance": ("frechet_distance", "value", 4)}
    measures |= {"classifier score": ("classifier_score", "value", 2)}
    for title, (name, key, digits) in measures.items():
        found = [row["summary"].get(name, {}).get(key) for row in rows]
        if any(value is not None for value in found):
            columns[title] = ["-" if v is None else f"{v:.{digits}f}" for v in found]
    for name in ("encode", "decode"):
        pairs = [row[f"{name}_ms"] for row in rows]
        columns[f"{name} ms (processor)"] = [
            f"{each['wall']:.1f} ({each['processor']:.1f})" for each in pairs
        ]
    if "unet" in rows[0]:
        columns["UNet GFLOP/step"] = [f"{row['unet']['gflop_per_step']:.2f}" for row in rows]
    return markdown_table(list(columns), zip(*columns.values(), strict=True)) + "\n"


def _shape(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))


if __name__ == "__main__":
    sys.exit(exit_code(compare_first_stages))
