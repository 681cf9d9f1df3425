"""Samplers set side by side on a trained model: the same seeds, the same conditions."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ldm.cli.first_stages import versions
from ldm.cli.rundir import model_files
from ldm.cli.running import autocast, check_least, output_directory
from ldm.cli.sampling.loading import checkpoint_and_block, load_model
from ldm.config import ConfigError, instantiate_from_config, load, to_plain
from ldm.data.module import collate
from ldm.data.shapes import ShapesDataset
from ldm.data.shapes_verifier import score
from ldm.evaluation.curves import plot_curves
from ldm.evaluation.drawing import draw
from ldm.evaluation.samplers import Outcome, curves_of, distance, outcome_table, steps_within
from ldm.io.digest import sha256_of
from ldm.samplers.names import SAMPLERS, sampler_named
from ldm.spelling import require_known

__all__ = ["compare_samplers_of"]

Images = list[NDArray[np.uint8]]

# the solution of the probability-flow ODE, as far as pixels tell
_REFERENCE = ("dpmpp-3m", 200)


def compare_samplers_of(args: argparse.Namespace) -> str:
    """Draw what is missing, write table and plot, and return the table.

    Raises ConfigError for what the user got wrong.
    """
    _check(args)
    checkpoint, block = checkpoint_and_block(args)
    comparison = _Comparison(args, load_model(args, checkpoint, block))
    comparison.begin(checkpoint)
    done = {(each.sampler, each.allowed) for each in comparison.outcomes()}
    wanted = [(name, allowed) for name in args.samplers for allowed in args.evaluations]
    for name, allowed in wanted:
        if (name, allowed) not in done:
            comparison.add(name, allowed)
    return comparison.finish()


def _check(args: argparse.Namespace) -> None:
    check_least(args, n=1, batch_size=1)
    for name in args.samplers:
        try:
            require_known("--samplers", name, SAMPLERS)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    if min(args.evaluations) < 1:
        raise ConfigError(f"--evaluations {min(args.evaluations)}: expected 1 or more")


class _Comparison:
    """A directory of outcomes, to which several processes may add.

    `outcomes.jsonl` grows by a line for each, `reference.npz` holds the images to compare with.
    """

    def __init__(self, args: argparse.Namespace, model: Any) -> None:
        self.args, self.model = args, model
        self.out = output_directory(args.out)
        self.file = self.out / "outcomes.jsonl"
        self.entries, self.captions = _conditions(args, model)

    def begin(self, checkpoint: Path) -> None:
        """Note what is compared, ConfigError if the directory is of something else; reference."""
        args = self.args
        told = {"checkpoint": sha256_of(checkpoint), "n": args.n, "scale": args.scale}
        told |= {"precision": args.precision, "seed": args.seed, "weights": args.weights}
        path = self.out / "comparison.json"
        if path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            for name, value in told.items():
                if before[name] != value:
                    was = f"{name} was {before[name]}, and now is {value}"
                    raise ConfigError(f"--out {self.out}: holds another comparison: {was}")
        else:
            path.write_text(json.dumps({**told, "versions": versions()}, indent=2) + "\n")
        images = self.out / "reference.npz"
        if not images.is_file():
            name, steps = _REFERENCE
            np.savez_compressed(images, arr_0=np.stack(self._draw(name, steps)))
        with np.load(images) as held:
            self.reference: Images = list(held["arr_0"])

    def outcomes(self) -> list[Outcome]:
        """All that are there, in the order of the samplers' names."""
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.is_file() else []
        found = [Outcome(**json.loads(line)) for line in lines]
        return sorted(found, key=lambda each: (list(SAMPLERS).index(each.sampler), each.allowed))

    def add(self, name: str, allowed: int) -> None:
        """Draw with a sampler, and note the outcome; nothing where no step is cheap enough."""
        sampler = sampler_named(name)
        steps = steps_within(sampler, allowed)
        if not steps:
            return
        images = self._draw(name, steps)
        outcome = Outcome(
            sampler=name,
            allowed=allowed,
            steps=steps,
            score=score(images, self.captions).accuracy if self.captions else None,
            distance=None if sampler.adds_noise else distance(images, self.reference),
        )
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")

    def finish(self) -> str:
        """Write tables and plot of all outcomes; the tables."""
        found = self.outcomes()
        texts, panels = [], {}
        for value, title, scale in (
            ("score", "captions shown, %", 100.0),
            ("distance", "distance from the ODE, levels", 1.0),
        ):
            curves = curves_of(found, value)
            if curves:
                texts.append(f"{title}\n\n{outcome_table(found, value, scale)}\n")
                panels[title] = {
                    name: [(at, scale * each) for at, each in sorted(curve.items())]
                    for name, curve in curves.items()
                }
        (self.out / "table.md").write_text("\n".join(texts), encoding="utf-8")
        plot_curves(
            panels,
            self.out / "picture.png",
            logarithmic=["distance from the ODE, levels"],
            along="evaluations",
            is_log_along=True,
        )
        return "\n".join(texts)

    def _draw(self, name: str, steps: int) -> Images:
        args = self.args
        bar = tqdm(total=args.n, unit="image", desc=f"{name}, {steps} steps", leave=False)
        with bar, autocast(self.model.device, args.precision):
            drawn = draw(
                self.model,
                range(args.seed, args.seed + args.n),
                self.entries,
                batch_size=args.batch_size,
                progress=bar.update,
                steps=steps,
                sampler=sampler_named(name),
                scale=args.scale,
                weights=args.weights,
            )
            return list(drawn)


def _conditions(
    args: argparse.Namespace, model: Any
) -> tuple[dict[str, Any] | None, Sequence[str] | None]:
    """What the model is told, of the run's validation data, and captions that can be verified."""
    _, files = model_files(args.run, args.config)
    keys = {part.key for part in model.conditioner.parts}
    if not keys:
        return None, None
    data = to_plain(load(files)).get("data", {}).get("params", {}).get("validation")
    if data is None:
        raise ConfigError(f"{files[-1]}: has no data.params.validation, whose conditions are drawn")
    source = instantiate_from_config(data, path="data.params.validation")
    if len(source) < args.n:
        raise ConfigError(f"--n {args.n}: the validation data has {len(source)} items")
    batch = collate([source[index] for index in range(args.n)])
    is_scenes = isinstance(source, ShapesDataset) and "caption" in keys
    return {key: batch[key] for key in keys}, batch["caption"] if is_scenes else None
