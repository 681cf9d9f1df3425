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
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ldm.cli.arguments import parse_devices
from ldm.cli.exits import exit_code
from ldm.cli.rundir import checkpoint_of
from ldm.cli.sampling.draw import draw_task
from ldm.cli.sampling.text import TextToImage
from ldm.config import ConfigError, load, to_plain
from ldm.data.shapes import ShapesDataset
from ldm.data.shapes_verifier import Report, score
from ldm.evaluation.curves import plot_curves, read_metrics

CONFIGS = Path("configs/quickstart")
PROCESSES = 2  # on the CPU
BATCH = "data.params.batch_size"
STEPS = "lightning.trainer.max_steps"
DECAY = "model.params.scheduler_config.params.max_decay_steps"
EXAMPLE = "a large green triangle in the centre on navy"


def quickstart(argv: Sequence[str]) -> None:
    """Train the first stage, then the second on its latents; draw, score and plot."""
    args = _parse(argv)
    _require_all_there()
    # networks this small gain little from threads, and threads that wait for each other stand
    # still as soon as something else runs on one of the cores
    torch.set_num_threads(1)
    out, start = Path(args.logdir), time.monotonic()
    first = _train("autoencoder", args)
    weights = checkpoint_of(str(first))
    second = _train("ldm", args, f"model.params.first_stage_config.params.ckpt_path={weights}")
    print(_summary(_draw_and_score(second, out / "samples", args)))
    _plot(first, second, out / "losses.png")
    print(f"pictures: {out / 'samples' / 'grid.png'}, {out / 'losses.png'}")
    print(f"{(time.monotonic() - start) / 60:.1f} minutes in all. Now draw your own:")
    print(f'  python scripts/txt2img.py {second} --prompt "{EXAMPLE}"')


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--logdir", default="logs/quickstart", help="where everything goes")
    add("--longer", type=float, default=1.0, help="factor on the optimizer steps of both stages")
    add("--gpus", default="cpu", help="as for main.py")
    add("--seed", type=int, default=23, help="seed of training and of the first picture")
    add("--captions", type=int, default=256, help="held-out captions to draw and score")
    args = parser.parse_args(argv)
    if args.longer <= 0:
        raise ConfigError(f"--longer {args.longer}: expected more than 0")
    if args.captions < 1:
        raise ConfigError(f"--captions {args.captions}: expected 1 or more")
    return args


def _require_all_there() -> None:
    """Raise ConfigError for what would be missed after minutes of training."""
    if not CONFIGS.is_dir():
        raise ConfigError(f"there is no {CONFIGS} here: start this from the root of the project")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("matplotlib, which plots the losses, is missing: pip install '.[demo]'")


def _train(name: str, args: argparse.Namespace, *overrides: str) -> Path:
    """Train a stage by the command line; returns its run directory.

    Ends the script, as the command line ended, when that failed: it has said why.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before = set(Path(args.logdir).glob("*"))
    command = [sys.executable, "main.py", *_stage(name, args), *overrides]
    with subprocess.Popen(command, env=environment) as training:
        try:
            code = training.wait()
        except KeyboardInterrupt:
            code = training.wait()  # Ctrl-C has reached it, too: it saves and ends
    if code:
        raise SystemExit(code)
    (run,) = set(Path(args.logdir).glob(f"*_{name}")) - before
    return run


def _stage(name: str, args: argparse.Namespace) -> list[str]:
    """The command line of a stage's training."""
    path = CONFIGS / f"{name}.yaml"
    config = to_plain(load([path]))
    steps = round(config["lightning"]["trainer"]["max_steps"] * args.longer)
    if _is_on_cpu(args):
        processes = min(PROCESSES, os.cpu_count() or 1)
        share = config["data"]["params"]["batch_size"] // processes
        where = ["--accelerator", "cpu", "--devices", str(processes), f"{BATCH}={share}"]
    else:
        where = ["--gpus", args.gpus]
    flags = ["-t", "--base", str(path), "--logdir", args.logdir, "--seed", str(args.seed)]
    return [*flags, *where, f"{STEPS}={steps}", f"{DECAY}={steps}"]


def _is_on_cpu(args: argparse.Namespace) -> bool:
    return parse_devices(args.gpus).accelerator == "cpu"


def _drawing(run: Path, out: Path, args: argparse.Namespace) -> list[str]:
    """The command line of drawing."""
    device = "cpu" if _is_on_cpu(args) else "auto"
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
