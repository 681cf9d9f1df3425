"""A small twin of every task of the paper, trained on drawn scenes, and how well it does it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ldm.cli.rundir import checkpoint_of, model_files
from ldm.cli.running import autocast
from ldm.cli.sampling.loading import checkpoint_and_block, load_model
from ldm.cli.stages import is_on_cpu, run_script, train_stage
from ldm.config import instantiate_from_config, load, to_plain
from ldm.data.layouts import layout_picture
from ldm.data.maps import coloured
from ldm.data.module import collate
from ldm.data.scenes import BACKGROUNDS, CLASS_NAMES
from ldm.data.transforms import resize
from ldm.evaluation import scene_measures as measures
from ldm.evaluation.drawing import draw
from ldm.evaluation.sheets import captioned_sheet
from ldm.evaluation.tables import markdown_table

__all__ = ["TASKS", "SceneTask", "task_table", "train_task"]

CONFIGS = Path("configs/tasks")

Pixels = NDArray[np.uint8]
Images = Sequence[Pixels]
Item = Mapping[str, Any]
Items = Sequence[Item]
Measure = Callable[[Images, Items], dict[str, float]]

_WEIGHTS = "model.params.first_stage_config.params.ckpt_path"
_SHOWN = 8  # scenes on a sheet
_WORDS = 24  # letters to a line


@dataclass(frozen=True)
class SceneTask:
    """What a twin is asked for, and by which figures it is judged.

    measure: of pictures and the items they were asked by.
    scale, steps: of guidance, and of the model's sampler.
    baseline: pictures that are there without any model, made of the items; None where the model's
        own, without its condition, are what to compare with.  without: what these are, in words.
    finish: what becomes of a picture, by its item.  keep: items that are drawn.
    picture, words: what was asked for, on a sheet, above what was drawn and below.
    sides: of the pictures that are asked for, as factors on those of training.
    of_latents: whether there is a first stage to train before it.
    before: what is made before training, and the overrides that name it.
    """

    measure: Measure
    without: str = "no condition"
    baseline: Callable[[Items], Images] | None = None
    scale: float = 1.0
    steps: int = 20
    finish: Callable[[Pixels, Item], Pixels] | None = None
    keep: Callable[[Item], bool] | None = None
    picture: Callable[[Item], Pixels] | None = None
    words: Callable[[Item], str] = lambda item: "drawn"
    sides: tuple[int, ...] = (1,)
    of_latents: bool = True
    before: Callable[[argparse.Namespace], list[str]] | None = None


def _noise(items: Items) -> Images:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, item["image"].shape, dtype=np.uint8) for item in items]


def _background(items: Items) -> Images:
    white = np.array(BACKGROUNDS["white"], np.uint8)
    return [np.broadcast_to(white, item["image"].shape) for item in items]


def _bicubic(items: Items) -> Images:
    sides = [item["image"].shape for item in items]
    return [resize(item["LR_image"], h, w) for item, (h, w, _) in zip(items, sides, strict=True)]


def _mean_of_known(items: Items) -> Images:
    filled = []
    for item in items:
        known = item["mask"][..., 0] == 0
        mean = item["image"][known].mean(axis=0).round().astype(np.uint8)
        filled.append(np.where(known[..., None], item["image"], mean))
    return filled


def _with_known(image: Pixels, item: Item) -> Pixels:
    """The picture as scripts/inpaint.py writes it: known pixels are those of the image."""
    return np.where(item["mask"] == 0, item["image"], image)


def _hides_half_a_thing(item: Item) -> bool:
    """Whether a hole hides a quarter to three quarters of what is in the picture."""
    thing = item["segmentation"] > 0
    return 0.25 <= float((item["mask"][..., 0] > 0)[thing].mean()) <= 0.75


def _index(args: argparse.Namespace) -> list[str]:
    """Train a CLIP of drawn scenes, and find the neighbours of the data by it."""
    clip, index = (str(Path(args.logdir) / name) for name in ("clip", "neighbours.safetensors"))
    config = str(CONFIGS / "retrieval.yaml")
    device = ["--device", "cpu" if is_on_cpu(args) else "auto"]
    if not Path(index).is_file():
        if not (Path(clip) / "model.safetensors").is_file():  # an index is begun by one CLIP
            run_script("scripts/train_clip.py", "--out", clip, *device)
        run_script("scripts/build_index.py", config, "--clip", clip, "--out", index, *device)
    return [f"data.params.train.params.index={index}"]


def _frames(item: Item) -> Pixels:
    height, width = item["image"].shape[:2]
    return layout_picture(item["layout"], 4 * height, 4 * width)


def _class_name(item: Item) -> str:
    return CLASS_NAMES[item["class_label"]]


def _class_names(item: Item) -> str:
    return ", ".join(CLASS_NAMES[label] for label in item["box_classes"])


_SEMANTIC = SceneTask(
    measures.colours,
    "white",
    _background,
    picture=lambda item: coloured(item["segmentation"]),
    words=_class_names,
    sides=(1, 2),
)
# name of a configuration -> what its model is judged by
TASKS: dict[str, SceneTask] = {
    "unconditional": SceneTask(measures.scenes, "noise", _noise),
    "class": SceneTask(measures.classes, scale=1.5, words=_class_name),
    "text": SceneTask(measures.agreement, scale=1.5, words=itemgetter("caption")),
    "layout": SceneTask(measures.layouts, steps=50, picture=_frames, words=_class_names),
    "semantic": _SEMANTIC,
    "superres": SceneTask(
        measures.peak_signal, "bicubic", _bicubic, picture=itemgetter("LR_image")
    ),
    "inpaint": SceneTask(
        measures.agreement,
        "mean of known pixels",
        _mean_of_known,
        finish=_with_known,
        keep=_hides_half_a_thing,
        picture=itemgetter("masked_image"),
    ),
    "pixels": replace(_SEMANTIC, of_latents=False),
    "retrieval": SceneTask(measures.agreement, scale=1.5, before=_index),
}


def train_task(
    name: str, first_stage: Callable[[], Path], args: argparse.Namespace
) -> dict[str, Any]:
    """Train a twin, draw what its validation data ask for, and judge it; what came of it.

    first_stage: trains it, where that was not done, and returns its run. What is there of an
    earlier call is not done again.
    """
    out = Path(args.logdir) / name
    report = out / "report.json"
    if report.is_file():
        return dict(json.loads(report.read_text(encoding="utf-8")))
    task = TASKS[name]
    weights = [f"{_WEIGHTS}={checkpoint_of(str(first_stage()))}"] if task.of_latents else []
    start = time.monotonic()
    overrides = [*weights, *(task.before(args) if task.before else [])]
    run = train_stage(CONFIGS / f"{name}.yaml", args, *overrides)
    minutes = (time.monotonic() - start) / 60
    return judge(name, run, args, out, minutes)


def judge(
    name: str, run: Path, args: argparse.Namespace, out: Path, minutes: float | None = None
) -> dict[str, Any]:
    """Draw what the validation data of a run ask for, write report.json and sheets to `out`."""
    task = TASKS[name]
    options = argparse.Namespace(run=str(run), config=None, weights="ema", trust=())
    options.device = "cpu" if is_on_cpu(args) else "auto"
    checkpoint, block = checkpoint_and_block(options)
    model = load_model(options, checkpoint, block)
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    for factor in task.sides:
        items = _items(run, task, factor, args.n)
        drawer = partial(_drawn, model, task, items, factor, args)
        images = drawer(task.scale)
        without = drawer(0.0) if task.baseline is None else task.baseline(items)
        real = [item["image"] for item in items]
        found[str(factor)] = {
            "drawn": task.measure(images, items),
            "without": task.measure(without, items),
            "other": task.measure([*real[1:], real[0]], items),
            "real": task.measure(real, items),
            "unguided": task.measure(drawer(1.0), items) if task.scale != 1 else None,
        }
        suffix = "" if factor == 1 else f"-{factor}"
        Image.fromarray(_sheet(task, images, items)).save(out / f"sheet{suffix}.png")
    said = {"run": str(run), "minutes": minutes, "n": len(items), "sides": found}
    (out / "report.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    return said


def _items(run: Path, task: SceneTask, factor: int, count: int) -> list[Item]:
    """Held-out scenes of the run's validation data, so many as there are at most."""
    _, files = model_files(str(run), None)
    data = to_plain(load(files))["data"]["params"]["validation"]
    if factor > 1:  # whole scenes of windows
        data = data["params"]["source"]
    source = instantiate_from_config(data, path="data.params.validation")
    items = (source[index] for index in range(len(source)))
    return [item for item in items if task.keep is None or task.keep(item)][:count]


def _drawn(
    model: Any,
    task: SceneTask,
    items: Items,
    factor: int,
    args: argparse.Namespace,
    scale: float,
) -> Images:
    """What the model draws for the items, from the seeds of the command line."""
    batch = collate(items)
    entries = {key: value for key, value in batch.items() if key != "image"} or None
    side = factor * model.image_size
    with tqdm(total=len(items), unit="image", leave=False) as bar, autocast(model.device, "bf16"):
        drawn = draw(
            model,
            range(args.seed, args.seed + len(items)),
            entries,
            batch_size=64,
            progress=bar.update,
            steps=task.steps,
            scale=scale,
            size=(side, side),
        )
        images = list(drawn)
    if task.finish is None:
        return images
    return [task.finish(image, item) for image, item in zip(images, items, strict=True)]


def _sheet(task: SceneTask, images: Images, items: Items) -> Pixels:
    """Per column a scene: what was asked for, what was drawn, the scene it was taken from."""
    shown = list(zip(images, items, strict=True))[:_SHOWN]
    asked = [] if task.picture is None else [[(task.picture(item), "asked") for _, item in shown]]
    drawn = [(image, "\n".join(wrap(task.words(item), _WORDS))) for image, item in shown]
    return captioned_sheet([*asked, drawn, [(item["image"], "real") for _, item in shown]])


def task_table(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """A row per figure of each task, in Markdown, with the minutes that its training took."""
    head = ["task", "figure", "drawn", "unguided", "real scenes", "other scenes", "without"]
    rows = []
    for name, report in reports.items():
        minutes = "" if report["minutes"] is None else f" ({report['minutes']:.1f} min)"
        for factor, each in report["sides"].items():
            for figure in each["drawn"]:
                title = f"{name}{minutes}" if factor == "1" else f"{name}, {factor} times the side"
                cells = [_shown(figure, each[key]) for key in ("drawn", "unguided", "real")]
                other = _shown(figure, each["other"])
                if figure == "PSNR":  # of an image and itself, or another one
                    cells[2] = other = ""
                without = f"{_shown(figure, each['without'])} ({TASKS[name].without})"
                rows.append([title, figure, *cells, other, without])
    return markdown_table(head, rows)


def _shown(figure: str, values: Mapping[str, float] | None) -> str:
    if values is None or figure not in values:
        return ""
    value = values[figure]
    if figure == "PSNR":
        return f"{value:.2f} dB"
    return f"{value:.2f}" if figure == "box IoU" else f"{value:.1%}"
