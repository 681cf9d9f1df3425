"""What the sampling scripts share: flags, the model of a run, pictures on disk."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torchvision.utils import make_grid
from tqdm import tqdm

from ldm.cli.rundir import RunDir, checkpoint_of, run_of
from ldm.config import (
    ConfigError,
    check,
    instantiate_model,
    load,
    model_block,
    trust,
    with_key,
    without_checkpoints,
)
from ldm.data.listing import utf8_text
from ldm.evaluation.drawing import draw
from ldm.log import log
from ldm.models.restore import restore_weights
from ldm.samplers.base import Sampler
from ldm.samplers.ddim import DDIM

__all__ = [
    "autocast",
    "caption_entries",
    "check_flags",
    "check_least",
    "device_of",
    "draw_all",
    "draw_and_write",
    "label_entries",
    "load_model",
    "model_files",
    "output_directory",
    "read_captions",
    "sampling_parser",
    "sheet",
]

GRID_LIMIT = 64  # images on a grid

Script = Literal["scripts/sample.py", "scripts/txt2img.py"]


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, []) else super()._get_help_string(action)


def sampling_parser(description: str) -> argparse.ArgumentParser:
    """The flags that all sampling scripts have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=_Defaults)
    add = parser.add_argument
    add("run", metavar="RUN", help="run directory, or a checkpoint of one")
    add("--config", metavar="YAML", help="configuration of a checkpoint outside a run")
    add("--out", metavar="DIR", default="outputs", help="where pictures go")
    add("--seed", type=int, default=0, help="seed of the first image; image i uses seed + i")
    add("--steps", type=int, default=50, help="steps of the sampler per image")
    add("--scale", type=float, default=1.0, help="strength of classifier-free guidance; 1 is none")
    add(
        "--eta",
        type=float,
        help="draw with DDIM and this noise (0 none, 1 as DDPM); default: the model's sampler",
    )
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="pixels; as trained by default")
    add("--batch-size", type=int, default=16, help="images drawn together")
    add("--weights", choices=("ema", "raw"), default="ema", help="averaged, or as trained last")
    add(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="precision of matrix products"
    )
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...")
    add("--trust", action="append", default=[], metavar="PACKAGE", help="see main.py --help")
    return parser


def check_flags(args: argparse.Namespace) -> None:
    """Raise ConfigError for a number out of range."""
    check_least(args, n=1, batch_size=1, seed=0, steps=1, eta=0)
    if args.eta is not None and args.eta > 1:
        raise ConfigError(f"--eta {args.eta}: expected 0 to 1")


def check_least(args: argparse.Namespace, **least: int) -> None:
    """Raise ConfigError for a flag below the least value that it takes."""
    for name, value in least.items():
        given = getattr(args, name)
        if given is not None and given < value:
            raise ConfigError(f"--{name.replace('_', '-')} {given}: expected {value} or more")


def load_model(args: argparse.Namespace) -> Any:
    """The model of a run with the weights of its checkpoint, ready to draw.

    Raises ConfigError: no such run, no checkpoint, a checkpoint of another model, no such device.
    """
    check_flags(args)
    for package in args.trust:
        trust(package)
    checkpoint, files = model_files(args.run, args.config)
    config = load(files)
    with with_key(str(files[-1])):
        block = model_block(config)
    check({"model": block})
    device = device_of(args.device)
    # the run's checkpoint holds the weights of all parts
    model = instantiate_model(without_checkpoints(block))
    if not hasattr(model, "sample"):
        raise ConfigError(
            f"{args.run}: holds a {type(model).__name__}, a first stage, which draws nothing by "
            "itself; give the run of a diffusion model that was trained on it"
        )
    restore_weights(model, checkpoint)
    return model.to(device).eval()


def model_files(path: str, config: str | None) -> tuple[Path, list[Path]]:
    """The checkpoint of a run, or that a path names, and the configuration of its model.

    config: describes a checkpoint outside a run.
    Raises ConfigError when there is no such path, or no configuration.
    """
    if config and not Path(path).is_dir():
        return Path(path), [Path(config)]
    checkpoint = checkpoint_of(path)
    if config:
        return checkpoint, [Path(config)]
    run = run_of(path)
    recorded = [] if run is None else RunDir(run, now="").config_files()
    files = [each for each in recorded if "project" in each.name]
    if not files:
        raise ConfigError(f"{path}: lies in no run with configs/*-project.yaml; give --config YAML")
    return checkpoint, files


def device_of(name: str) -> torch.device:
    """The device of a flag `--device`; ConfigError for none, or one that is not there."""
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

    Raises ConfigError for a model that does not draw from captions alone.
    """
    _require_drawn_by("scripts/txt2img.py", model)
    return {part.key: list(captions) for part in model.conditioner.parts}


def label_entries(
    model: Any, classes: Sequence[int] | None, each: int
) -> dict[str, torch.Tensor] | None:
    """Labels, `each` of every class, under the name that the model reads them by; None without.

    Raises ConfigError when the model needs what is not given, or the other way round, and for one
    that does not draw from one entry of labels.
    """
    _require_drawn_by("scripts/sample.py", model)
    parts = model.conditioner.parts
    if not parts:
        if classes is None:
            return None
        raise ConfigError(f"--classes {_spaced(classes)}: this model was trained without classes")
    key, last = parts[0].key, min(part.embedder.null_label for part in parts)
    if classes is None:
        raise ConfigError(f"--classes is needed: labels 0 to {last}, of {key}")
    if not all(0 <= label <= last for label in classes):
        raise ConfigError(f"--classes {_spaced(classes)}: expected labels 0 to {last}")
    return {key: torch.tensor(list(classes), device=model.device).repeat_interleave(each)}


def _require_drawn_by(script: Script, model: Any) -> None:
    """Raise ConfigError unless this script gives a model all that it draws from."""
    parts = model.conditioner.parts
    kinds = {part.embedder.reads for part in parts}
    drawn_by = "`model.sample` from Python (docs/sampling.md)"
    if kinds == {"text"}:
        drawn_by = "scripts/txt2img.py"
    elif not parts or (kinds == {"label"} and len({part.key for part in parts}) == 1):
        drawn_by = "scripts/sample.py"
    if drawn_by != script:
        entries = [f"{part.key} ({type(part.embedder).__name__})" for part in parts]
        given = " and ".join(entries) or "nothing"
        raise ConfigError(f"this model draws from {given}; draw it with {drawn_by}")


def _spaced(values: Sequence[int]) -> str:
    return " ".join(map(str, values))


def read_captions(prompts: Sequence[str], path: str | None) -> list[str]:
    """Captions of the command line, then those of a file, one per line; ConfigError for none."""
    captions = list(prompts)
    if path is not None:
        if not Path(path).is_file():
            raise ConfigError(f"--from-file {path}: no such file")
        lines = utf8_text(Path(path)).splitlines()
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
    out = output_directory(args.out)
    options = {key: getattr(args, key) for key in ("run", "steps", "scale", "weights")}
    options["sampler"] = _sampler(args) or model.sampler
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
        "sampler": _sampler(args),
    }

    def images() -> Iterator[NDArray[np.uint8]]:
        with (
            tqdm(total=len(seeds), unit="image", disable=len(seeds) == 1) as bar,
            autocast(model.device, args.precision),
        ):
            yield from draw(model, seeds, entries, progress=bar.update, **options)

    return images()


def _sampler(args: argparse.Namespace) -> Sampler | None:
    """DDIM where its noise is given; None for the model's own sampler."""
    return None if args.eta is None else DDIM(eta=args.eta)


def output_directory(path: str) -> Path:
    """The directory, made where there is none; ConfigError where there cannot be one."""
    out = Path(path)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: expected a directory: {error.strerror}") from error
    return out


def sheet(images: Sequence[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    """Images (H, W, C) uint8 as one picture, from left to right and top to bottom."""
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return make_grid(stacked, nrow=columns, padding=2).permute(1, 2, 0).numpy()  # type: ignore[no-any-return]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a flag `--precision`: fp32, or bf16 matrix products."""
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
    """Write a PNG with its record as text; of two channels the first, of five or more three."""
    info = PngInfo()
    for key, value in record.items():
        info.add_text(key, str(value))
    if image.shape[2] not in (1, 3, 4):  # not what a PNG holds
        image = image[..., : 1 if image.shape[2] == 2 else 3]
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(path, pnginfo=info)
