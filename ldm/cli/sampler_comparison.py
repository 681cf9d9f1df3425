"""Samplers set side by side on a trained model: the same seeds, the same conditions."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ldm.cli.first_stages import versions
from ldm.cli.rundir import model_files
from ldm.cli.running import autocast, check_finite, check_least, output_directory
from ldm.cli.sampling.arrays import write_npz
from ldm.cli.sampling.loading import checkpoint_and_block, load_model
from ldm.cli.sampling.options import require_condition, require_runs
from ldm.config import ConfigError, instantiate_from_config, load, to_plain
from ldm.data.module import collate
from ldm.data.shapes import ShapesDataset
from ldm.data.shapes_verifier import score
from ldm.evaluation.curves import plot_curves
from ldm.evaluation.drawing import draw
from ldm.evaluation.samplers import Outcome, curves_of, distance, outcome_table, steps_within
from ldm.hashing import hash64
from ldm.io.digest import sha256_of
from ldm.log import log
from ldm.samplers.names import SAMPLERS, sampler_named
from ldm.spelling import require_known

__all__ = ["compare_samplers_of"]

Images = list[NDArray[np.uint8]]

# the solution of the probability-flow ODE, as far as pixels tell
_REFERENCE, _REFERENCE_STEPS = "dpmpp-3m", 200


def compare_samplers_of(args: argparse.Namespace) -> str:
    """Draw what is missing, write table and plot, and return the table.

    Raises ConfigError for what the user got wrong, before anything is drawn.
    """
    check_least(args, n=1, batch_size=1, seed=0)
    check_finite(args)
    for name in args.samplers or ():
        try:
            require_known("--samplers", name, SAMPLERS)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    checkpoint, block = checkpoint_and_block(args)
    model = load_model(args, checkpoint, block)
    require_condition(args, model)
    plans = _plans(args, model)
    comparison = _Comparison(args, model)
    comparison.begin(checkpoint)
    done = {(each.sampler, each.allowed) for each in comparison.outcomes()}
    for plan in plans:
        if (plan.name, plan.allowed) not in done:
            comparison.add(plan)
    return comparison.finish()


@dataclass(frozen=True)
class _Plan:
    """So many steps of a sampler, of which these evaluations allow no more."""

    name: str
    allowed: int
    steps: int


def _plans(args: argparse.Namespace, model: Any) -> list[_Plan]:
    """What is to be drawn, each once; without `--samplers`, by those that the model can do.

    Raises ConfigError for evaluations that are too many or none, and for a named sampler that the
    model's schedule is not for.
    """
    plans = []
    for name in dict.fromkeys(args.samplers or SAMPLERS):
        for allowed in dict.fromkeys(args.evaluations):
            _require_levels(allowed, model)
            sampler = sampler_named(name)
            if not (steps := steps_within(sampler, allowed)):
                continue
            try:
                require_runs(sampler, model.schedule, steps)
            except ConfigError as error:
                _, _, reason = str(error).partition(": ")
                if args.samplers:
                    raise ConfigError(f"--samplers {name}: {reason}") from error
                log.info("%s is left out: %s", name, reason)
                break
            plans.append(_Plan(name, allowed, steps))
    return plans


def _require_levels(allowed: int, model: Any) -> None:
    limit = model.schedule.num_timesteps or allowed
    if not 1 <= allowed <= limit:
        raise ConfigError(f"--evaluations {allowed}: expected 1 to {limit}, the model's levels")


class _Comparison:
    """A directory of outcomes, to which several processes may add.

    `outcomes.jsonl` grows by a line for each, `reference.npz` holds the images to compare with.
    """

    def __init__(self, args: argparse.Namespace, model: Any) -> None:
        self.args, self.model = args, model
        self.entries, self.captions = _conditions(args, model)
        self.out = output_directory(args.out)
        self.file = self.out / "outcomes.jsonl"

    def begin(self, checkpoint: Path) -> None:
        """Note what is compared, ConfigError if the directory is of something else; reference."""
        args = self.args
        told = {"checkpoint": sha256_of(checkpoint), "n": args.n, "scale": args.scale}
        told |= {"precision": args.precision, "seed": args.seed, "weights": args.weights}
        told |= {"conditions": _digest(self.entries)}
        path = self.out / "comparison.json"
        if path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            for name, value in told.items():
                if before.get(name) != value:
                    was = f"{name} was {before.get(name)}, and now is {value}"
                    raise ConfigError(f"--out {self.out}: holds another comparison: {was}")
        else:
            part = path.with_name(f"{path.name}.{os.getpid()}.part")
            part.write_text(json.dumps({**told, "versions": versions()}, indent=2) + "\n")
            part.replace(path)
        images = self.out / "reference.npz"
        if not images.is_file():
            steps = min(_REFERENCE_STEPS, self.model.schedule.num_timesteps or _REFERENCE_STEPS)
            drawn = self._draw(_REFERENCE, steps)
            write_npz(drawn, (len(drawn), *drawn[0].shape), images)
        with np.load(images) as held:
            self.reference: Images = list(held["arr_0"])

    def outcomes(self) -> list[Outcome]:
        """All that are there, in the order of the samplers' names."""
        found = []
        for line in self._text().splitlines():
            with suppress(json.JSONDecodeError):  # of a process that was killed while it wrote
                found.append(Outcome(**json.loads(line)))
        return sorted(found, key=lambda each: (list(SAMPLERS).index(each.sampler), each.allowed))

    def add(self, plan: _Plan) -> None:
        """Draw with a sampler, and note the outcome."""
        images = self._draw(plan.name, plan.steps)
        adds_noise = sampler_named(plan.name).adds_noise
        outcome = Outcome(
            sampler=plan.name,
            allowed=plan.allowed,
            steps=plan.steps,
            score=score(images, self.captions).accuracy if self.captions else None,
            distance=None if adds_noise else distance(images, self.reference),
        )
        text = self._text()
        torn = "\n" if text and not text.endswith("\n") else ""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(torn + json.dumps(asdict(outcome)) + "\n")

    def _text(self) -> str:
        return self.file.read_text(encoding="utf-8") if self.file.is_file() else ""

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
        if not panels:
            return "nothing to show: no captions, and samplers with noise have no distance\n"
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
    data = to_plain(load(files)).get("data") or {}
    if (data := (data.get("params") or {}).get("validation")) is None:
        raise ConfigError(f"{files[-1]}: has no data.params.validation, whose conditions are drawn")
    source = instantiate_from_config(data, path="data.params.validation")
    if len(source) < args.n:
        raise ConfigError(f"--n {args.n}: the validation data has {len(source)} items")
    batch = collate([source[index] for index in range(args.n)])
    if missing := sorted(keys - batch.keys()):
        raise ConfigError(f"{files[-1]}: data.params.validation has no {missing[0]!r} to draw from")
    is_scenes = isinstance(source, ShapesDataset) and "caption" in keys
    return {key: batch[key] for key in keys}, batch["caption"] if is_scenes else None


def _digest(entries: dict[str, Any] | None) -> str:
    """64 bits of what is drawn from."""
    whole = b""
    for key, value in sorted((entries or {}).items()):
        plain = value.numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode()
        whole += key.encode() + b"=" + plain + b";"
    return f"{hash64(whole):016x}"
