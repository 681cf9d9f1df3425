"""From nothing to captions drawn: train both stages on drawn scenes, then score what they draw.

python scripts/quickstart.py                 # about ten minutes on two CPU cores
python scripts/quickstart.py --longer 1.7    # more optimizer steps, a better score

All of it is under one directory, logs/quickstart by default: the run of each stage, losses.png,
and samples/ with a grid and every picture that was scored.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ldm.cli.sampling import (
    caption_entries,
    draw_and_write,
    load_model,
    run_script,
    sampling_parser,
)
from ldm.cli.train import train
from ldm.config import ConfigError, load, to_plain
from ldm.data.shapes import ShapesDataset
from ldm.data.shapes_verifier import Report, score
from ldm.evaluation.curves import plot_curves, read_metrics

CONFIGS = Path("configs/quickstart")
STEPS = "lightning.trainer.max_steps"
DECAY = "model.params.scheduler_config.params.max_decay_steps"
EXAMPLE = "a large green triangle in the centre on navy"


def quickstart(argv: Sequence[str]) -> None:
    """Train the first stage, then the second on its latents; draw, score and plot."""
    args = _parse(argv)
    if not CONFIGS.is_dir():
        raise ConfigError(f"there is no {CONFIGS} here: start this from the root of the project")
    # networks this small gain nothing from a second thread, and two threads that wait for each
    # other stand still as soon as something else runs on one of two cores
    torch.set_num_threads(1)
    out, start = Path(args.logdir), time.monotonic()
    first = train(_stage("autoencoder", args))
    weights = first.checkpoints / "last.ckpt"
    second = train(
        _stage("ldm", args, f"model.params.first_stage_config.params.ckpt_path={weights}")
    )
    report = _draw_and_score(second.path, out / "samples", args)
    _plot(first.path, second.path, out / "losses.png")
    print(_summary(report))
    print(f"pictures: {out / 'samples' / 'grid.png'}, {out / 'losses.png'}")
    print(f"{(time.monotonic() - start) / 60:.1f} minutes in all. Now draw your own:")
    print(f'  python scripts/txt2img.py {second.path} --prompt "{EXAMPLE}"')


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--logdir", default="logs/quickstart", help="where everything goes")
    add("--longer", type=float, default=1.0, help="factor on the optimizer steps of both stages")
    add("--gpus", default="cpu", help="as for main.py")
    add("--seed", type=int, default=23, help="of training and of the first picture")
    add("--captions", type=int, default=256, help="held-out captions to draw and score")
    return parser.parse_args(argv)


def _stage(name: str, args: argparse.Namespace, *overrides: str) -> list[str]:
    """The command line of a stage's training."""
    path = CONFIGS / f"{name}.yaml"
    steps = round(to_plain(load([path]))["lightning"]["trainer"]["max_steps"] * args.longer)
    flags = ["-t", "--base", str(path), "--logdir", args.logdir, "--gpus", args.gpus]
    lengths = [f"{STEPS}={steps}", f"{DECAY}={steps}"]
    return [*flags, "--seed", str(args.seed), *lengths, *overrides]


def _draw_and_score(run: Path, out: Path, args: argparse.Namespace) -> Report:
    """Draw held-out captions with the trained model, one picture of each."""
    options = ["--out", str(out), "--steps", "20", "--scale", "2", "--batch-size", "64"]
    parser = sampling_parser("")
    parser.set_defaults(n=args.captions)
    drawing = parser.parse_args([str(run), *options, "--precision", "bf16"])
    data = to_plain(load([CONFIGS / "ldm.yaml"]))["data"]["params"]["validation"]["params"]
    scenes = ShapesDataset(**{**data, "length": args.captions})
    captions = [scenes[index]["caption"] for index in range(len(scenes))]
    model = load_model(drawing)
    seeds = range(args.seed, args.seed + len(captions))
    draw_and_write(model, drawing, seeds, caption_entries(model, captions))
    images = [np.asarray(Image.open(out / f"{index:05}.png")) for index in range(len(captions))]
    return score(images, captions)


def _plot(first: Path, second: Path, path: Path) -> None:
    """The losses of both stages, side by side."""
    stages = (
        ("first stage: squared error", read_metrics(first), "rec_loss"),
        ("second stage: prediction of v", read_metrics(second), "loss_simple"),
    )
    panels = {}
    for title, metrics, name in stages:
        curves = {"training": f"train/{name}", "validation": f"val/{name}"}
        panels[title] = {label: metrics[key] for label, key in curves.items() if key in metrics}
    plot_curves(panels, path, logarithmic=list(panels))


def _summary(report: Report) -> str:
    each = ", ".join(f"{name} {value:.1%}" for name, value in report.attributes.items())
    return (
        f"\ncaption score: {report.accuracy:.1%} of {report.count} held-out captions are drawn "
        f"with every attribute right\n  ({each})"
    )


if __name__ == "__main__":
    sys.exit(run_script(quickstart))
