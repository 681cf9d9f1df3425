"""From nothing to captions drawn: train both stages on drawn scenes, then score what they draw.

python scripts/quickstart.py                 # eight to ten minutes on two CPU cores
python scripts/quickstart.py --longer 1.5    # more optimizer steps, a better score

Each stage is trained by main.py, on two CPU cores by two processes with half of a batch each.
All of it is under one directory, logs/quickstart by default: the run of each stage, losses.png,
and samples/ with a grid and every picture that was scored.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ldm.cli.exits import exit_code
from ldm.cli.rundir import checkpoint_of
from ldm.cli.sampling.draw import draw_task
from ldm.cli.sampling.text import TextToImage
from ldm.cli.stages import add_training, is_on_cpu, train_stage
from ldm.config import ConfigError, load, to_plain
from ldm.data.shapes import ShapesDataset
from ldm.data.shapes_verifier import Report, score
from ldm.evaluation.curves import plot_curves, read_metrics

CONFIGS = Path("configs/quickstart")
EXAMPLE = "a large green triangle in the centre on navy"


def quickstart(argv: Sequence[str]) -> None:
    """Train the first stage, then the second on its latents; draw, score and plot."""
    args = _parse(argv)
    _require_all_there()
    # networks this small gain little from threads, and threads that wait for each other stand
    # still as soon as something else runs on one of the cores
    torch.set_num_threads(1)
    out, start = Path(args.logdir), time.monotonic()
    first = train_stage(CONFIGS / "autoencoder.yaml", args)
    weights = checkpoint_of(str(first))
    second = train_stage(
        CONFIGS / "ldm.yaml", args, f"model.params.first_stage_config.params.ckpt_path={weights}"
    )
    print(_summary(_draw_and_score(second, out / "samples", args)))
    _plot(first, second, out / "losses.png")
    print(f"pictures: {out / 'samples' / 'grid.png'}, {out / 'losses.png'}")
    print(f"{(time.monotonic() - start) / 60:.1f} minutes in all. Now draw your own:")
    print(f'  python scripts/txt2img.py {second} --prompt "{EXAMPLE}"')


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_training(parser, "logs/quickstart")
    parser.add_argument(
        "--captions", type=int, default=256, help="held-out captions to draw and score"
    )
    args = parser.parse_args(argv)
    if args.captions < 1:
        raise ConfigError(f"--captions {args.captions}: expected 1 or more")
    return args


def _require_all_there() -> None:
    """Raise ConfigError for what would be missed after minutes of training."""
    if not CONFIGS.is_dir():
        raise ConfigError(f"there is no {CONFIGS} here: start this from the root of the project")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("matplotlib, which plots the losses, is missing: pip install '.[demo]'")


def _drawing(run: Path, out: Path, args: argparse.Namespace) -> list[str]:
    """The command line of drawing."""
    device = "cpu" if is_on_cpu(args) else "auto"
    options = ["--steps", "20", "--scale", "1.5", "--batch-size", "64", "--precision", "bf16"]
    return [str(run), "--out", str(out), *options, "--device", device]


def _draw_and_score(run: Path, out: Path, args: argparse.Namespace) -> Report:
    """Draw held-out captions with the trained model, one picture of each."""
    data = to_plain(load([CONFIGS / "ldm.yaml"]))["data"]["params"]["validation"]["params"]
    scenes = ShapesDataset(**{**data, "length": args.captions})
    captions = [scenes[index]["caption"] for index in range(len(scenes))]
    prompts = [word for caption in captions for word in ("--prompt", caption)]
    draw_task(TextToImage(), [*_drawing(run, out, args), "--n", "1", *prompts])
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
    sys.exit(exit_code(quickstart))
