"""What the sampling scripts share: flags, the model of a run, pictures on disk."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torchvision.utils import make_grid
from tqdm import tqdm

from ldm.cli.rundir import resume_run
from ldm.conditioning.labels import ClassEmbedder
from ldm.conditioning.text import BERTEmbedder, FrozenCLIPEmbedder
from ldm.conditioning.words import BagOfWords
from ldm.config import ConfigError, check, instantiate_from_config, load, to_plain, trust
from ldm.evaluation.drawing import draw
from ldm.log import log
from ldm.models.restore import restore_weights
from ldm.samplers.ddim import DDIM

__all__ = [
    "caption_entries",
    "check_flags",
    "draw_all",
    "draw_and_write",
    "label_entries",
    "load_model",
    "read_captions",
    "run_script",
    "sampling_parser",
    "sheet",
]

EXIT_CONFIG = 2
READS_TEXT = (BERTEmbedder, BagOfWords, FrozenCLIPEmbedder)
GRID_LIMIT = 64  # images on a grid


def sampling_parser(description: str) -> argparse.ArgumentParser:
    """The flags that all sampling scripts have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="run directory, or a checkpoint of one")
    add("--config", metavar="YAML", help="of the model, for a checkpoint outside a run directory")
    add("--out", metavar="DIR", default="outputs", help="where pictures go")
    add("--seed", type=int, default=0, help="of the first image; the next ones count up")
    add("--steps", type=int, default=50, help="evaluations of the network per image")
    add("--scale", type=float, default=1.0, help="of classifier-free guidance; 1 is none")
    add("--eta", type=float, default=0.0, help="noise of DDIM: 0 none, 1 as much as DDPM")
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="in pixels; as trained by default")
    add("--batch-size", type=int, default=16, help="images drawn together")
    add("--weights", choices=("ema", "raw"), default="ema", help="averaged, or as trained last")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the networks")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...")
    add("--trust", action="append", default=[], metavar="PACKAGE", help="see main.py --help")
    return parser


def run_script(script: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a script's function; what the user got wrong is one line and exit code 2."""
    try:
        script(sys.argv[1:] if argv is None else argv)
    except ConfigError as error:
        log.error("error: %s", error)
        return EXIT_CONFIG
    return 0


def check_flags(args: argparse.Namespace) -> None:
    """Raise ConfigError for a number out of range."""
    for name, least in (("n", 1), ("batch_size", 1), ("seed", 0), ("steps", 1), ("eta", 0)):
        if getattr(args, name) < least:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} {getattr(args, name)}: expected {least} or more")


def load_model(args: argparse.Namespace) -> Any:
    """The model of a run with the weights of its checkpoint, ready to draw.

    Raises ConfigError: no such run, no checkpoint, a checkpoint of another model, no such device.
    """
    check_flags(args)
    for package in args.trust:
        trust(package)
    checkpoint, files = _files(args)
    config = to_plain(load(files))
    if not isinstance(config.get("model"), Mapping):
        raise ConfigError(f"{files[-1]}: there is no `model:` block")
    check({"model": config["model"]})
    block = {key: config["model"][key] for key in ("target", "params") if key in config["model"]}
    block["params"] = _without_checkpoints(block.get("params") or {})
    device = _device(args.device)
    model = instantiate_from_config(block, path="model")
    if not hasattr(model, "sample"):
        raise ConfigError(
            f"{args.run}: holds a {type(model).__name__}, a first stage, which draws nothing by "
            "itself; give the run of a diffusion model that was trained on it"
        )
    restore_weights(model, checkpoint)
    return model.to(device).eval()


def _files(args: argparse.Namespace) -> tuple[Path, list[Path]]:
    """The checkpoint, and the configuration that describes its model."""
    if args.config and not Path(args.run).is_dir():
        return Path(args.run), [Path(args.config)]
    run = resume_run(args.run)
    files = [path for path in run.config_files() if "project" in path.name]
    if args.config:
        files = [Path(args.config)]
    if not files:
        raise ConfigError(f"{args.run}: no configs/*-project.yaml beside it; give --config YAML")
    assert run.resume_from is not None
    return run.resume_from, files


def _without_checkpoints(value: Any) -> Any:
    """The parameters without checkpoints to start from: the run's own holds everything."""
    if isinstance(value, Mapping):
        return {k: _without_checkpoints(v) for k, v in value.items() if k != "ckpt_path"}
    return [_without_checkpoints(each) for each in value] if isinstance(value, list) else value


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name}: expected cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices")
    return device


def caption_entries(model: Any, captions: Sequence[str]) -> dict[str, list[str]]:
    """Captions under the name that the model reads them by.

    Raises ConfigError for a model that does not read text.
    """
    keys = [p.key for p in model.conditioner.parts if isinstance(p.embedder, READS_TEXT)]
    if not keys:
        raise ConfigError(
            f"this model has no encoder of captions (it draws from {_conditions(model)}); "
            "draw with scripts/sample.py"
        )
    return {key: list(captions) for key in keys}


def label_entries(
    model: Any, classes: Sequence[int] | None, each: int
) -> dict[str, torch.Tensor] | None:
    """Labels, `each` of every class, under the name that the model reads them by; None without.

    Raises ConfigError when the model needs what is not given, or the other way round.
    """
    parts = model.conditioner.parts
    tables = [part for part in parts if isinstance(part.embedder, ClassEmbedder)]
    if len(tables) < len(parts):
        raise ConfigError(
            f"this model draws from {_conditions(model)}; captions are drawn by scripts/txt2img.py"
        )
    if classes is None:
        if tables:
            last = tables[0].embedder.null_label
            raise ConfigError(f"--classes is needed: labels 0 to {last}, of {tables[0].key}")
        return None
    if not tables:
        raise ConfigError(f"--classes {_spaced(classes)}: this model was trained without classes")
    (part,) = tables
    if not all(0 <= label <= part.embedder.null_label for label in classes):
        last = part.embedder.null_label
        raise ConfigError(f"--classes {_spaced(classes)}: expected labels 0 to {last}")
    labels = torch.tensor(list(classes), device=model.device).repeat_interleave(each)
    return {part.key: labels}


def _conditions(model: Any) -> str:
    return ", ".join(part.key for part in model.conditioner.parts) or "nothing"


def _spaced(values: Sequence[int]) -> str:
    return " ".join(map(str, values))


def read_captions(prompts: Sequence[str], path: str | None) -> list[str]:
    """Captions of the command line, then those of a file, one per line; ConfigError for none."""
    captions = list(prompts)
    if path is not None:
        if not Path(path).is_file():
            raise ConfigError(f"--from-file {path}: no such file")
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        captions += [line.strip() for line in lines if line.strip()]
    if not captions:
        raise ConfigError("no captions: give --prompt TEXT or --from-file TXT")
    return captions


def draw_and_write(
    model: Any,
    args: argparse.Namespace,
    seeds: Sequence[int],
    entries: Mapping[str, Sequence[Any] | torch.Tensor] | None = None,
) -> None:
    """Draw one image per seed; write each as it comes, and the first ones together as `grid.png`.

    entries: what each is drawn from, as a batch of the data would hold it. It is recorded in the
        PNG, with the seed and the options.
    """
    images = draw_all(model, args, seeds, entries)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    options = {key: getattr(args, key) for key in ("run", "steps", "scale", "eta", "weights")}
    shown = []
    for index, image in enumerate(images):
        given = {key: _plain(values[index]) for key, values in (entries or {}).items()}
        _save(image, out / f"{index:05}.png", {"seed": seeds[index], **given, **options})
        if index < GRID_LIMIT:
            shown.append(image)
    columns = math.ceil(math.sqrt(len(shown)))
    _save(sheet(shown, columns), out / "grid.png", options)
    log.info("%d images in %s, and grid.png", len(seeds), out)


def draw_all(
    model: Any,
    args: argparse.Namespace,
    seeds: Sequence[int],
    entries: Mapping[str, Sequence[Any] | torch.Tensor] | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Images (H, W, C) uint8, one per seed, with a bar that shows the time left.

    Raises ConfigError at once for steps, a scale or a size that the model cannot take.
    """
    if args.scale != 1 and not entries:
        raise ConfigError(f"--scale {args.scale:g}: an unconditional model has nothing to follow")
    options = {
        "batch_size": args.batch_size,
        "steps": _steps(args.steps, model),
        "scale": args.scale,
        "size": _latent_size(args.size, model),
        "weights": args.weights,
        "sampler": DDIM(eta=args.eta),
    }

    def images() -> Iterator[NDArray[np.uint8]]:
        with (
            tqdm(total=len(seeds), unit="image", disable=len(seeds) == 1) as bar,
            _autocast(model.device, args.precision),
        ):
            yield from draw(model, seeds, entries, progress=bar.update, **options)

    return images()


def sheet(images: Sequence[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    """Images (H, W, C) uint8 as one picture, from left to right and top to bottom."""
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return make_grid(stacked, nrow=columns, padding=2).permute(1, 2, 0).numpy()  # type: ignore[no-any-return]


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _steps(steps: int, model: Any) -> int:
    limit = model.schedule.num_timesteps or steps
    if not 1 <= steps <= limit:
        raise ConfigError(f"--steps {steps}: expected 1 to {limit}")
    return steps


def _latent_size(size: Sequence[int] | None, model: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    factor = getattr(getattr(model, "first_stage_model", None), "downsample_factor", 1)
    cells = factor * getattr(model.model.diffusion_model, "downsample_factor", 1)
    if any(side < 1 or side % cells for side in size):
        raise ConfigError(f"--size {size[0]} {size[1]}: expected multiples of {cells} pixels")
    return size[0] // factor, size[1] // factor


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else value


def _save(image: NDArray[np.uint8], path: Path, record: Mapping[str, Any]) -> None:
    """Write a PNG with its record as text."""
    info = PngInfo()
    for key, value in record.items():
        info.add_text(key, str(value))
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(path, pnginfo=info)
