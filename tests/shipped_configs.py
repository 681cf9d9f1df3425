"""The configurations that the project ships, and the overrides that make one small."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import OmegaConf

from ldm.config import load

ROOT = Path(__file__).parent.parent
# parts of comparisons: each is merged with the others of its directory, or with a file above it
_PARTS = [
    ROOT / "configs" / name for name in ("quantizers", "game", "latent-diffusion/celebahq-study")
]
CONFIGS = sorted(
    path
    for path in (ROOT / "configs").rglob("*.yaml")
    if not any(path.is_relative_to(parts) for parts in _PARTS)
)
# the models of the paper, which tests/test_full_size.py tells apart
FULL_SIZE = [path for path in CONFIGS if path.parent.name == "latent-diffusion"]

# key -> the most it may be; group normalisation needs 32 channels
_AT_MOST = {
    "ch": 32,
    "model_channels": 32,
    "num_head_channels": 32,
    "num_res_blocks": 1,
    "n_layer": 1,
    "disc_ndf": 8,
    "batch_size": 2,
    "num_workers": 0,
    "length": 16,
    "accumulate_grad_batches": 1,
    "max_images": 2,
}
_LARGEST_IMAGE = 64  # pixels, for a first stage: a second stage's latents have a size of their own
_INDEX = "configs/tiny/neighbours.safetensors"  # of the first scenes of ShapesDataset
_INSTEAD = {"ckpt_path": "null", "lpips_weights": "null", "perceptual_weight": "0"}


class EveryGradient(pl.Callback):
    """Fails when something is trained without a gradient, for which other processes would wait."""

    def on_before_optimizer_step(self, trainer, module, optimizer):
        names = {parameter: name for name, parameter in module.named_parameters()}
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        assert [names[p] for p in trained if p.grad is None] == []


def name_of(path: Path) -> str:
    """A configuration as the documents name it, without its ending."""
    return str(path.relative_to(ROOT / "configs").with_suffix(""))


def plain(path: Path) -> dict[str, Any]:
    """A configuration as it is written, its references unresolved."""
    config = OmegaConf.to_container(load([path]), resolve=False)
    assert isinstance(config, dict)
    return config


def entries(value: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """Every value in a configuration: the path to it, its own key, the value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in pairs:
        where = f"{path}.{key}" if path else str(key)
        yield where, str(key), item
        if isinstance(item, dict | list):
            yield from entries(item, where)


def shrunk(config: dict[str, Any], root: Path | str) -> list[str]:
    """Overrides that leave a configuration its shape and take away its size.

    The networks keep their levels and attention and become narrow; the images of a first stage
    become small; files that are not there are not asked for; images come from `root`, where they
    come from a directory, and those of ImageNet from `synsets` beside it. Boxes are told by
    `instances.json` beside it.
    """
    overrides = []
    beside = {"data_root": "synsets", "file": "list.txt", "annotations": "instances.json"}
    places = {key: str(Path(root).parent / name) for key, name in beside.items()}
    places |= {"root": str(root), "shards": str(root), "index": str(_INDEX)}
    is_first_stage = "ddconfig" in config["model"].get("params", {})
    for path, key, value in entries(config):
        if key in _AT_MOST and (value is None or value > _AT_MOST[key]):
            overrides.append(f"{path}={_AT_MOST[key]}")
        elif key in _INSTEAD:
            overrides.append(f"{path}={_INSTEAD[key]}")
        elif value == "???" and key in places:
            overrides.append(f"{path}={places[key]}")
        elif key == "tokenizer" and isinstance(value, str):
            overrides.append(f"{path}=configs/quickstart/vocab.txt")
        elif is_first_stage and key == "size" and isinstance(value, int):
            overrides.append(f"{path}={min(value, _LARGEST_IMAGE)}")
    return overrides


def previews_in_two_steps(config: dict[str, Any]) -> list[str]:
    """The override that keeps a diffusion model's pictures cheap."""
    if "unet_config" not in config["model"]["params"]:
        return []
    return ["lightning.callbacks.image_logger.params.log_images_kwargs.steps=2"]
