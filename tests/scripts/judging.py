"""Run directories of small models that were not trained, and drawn scenes as files."""

from pathlib import Path

import torch
from PIL import Image

from ldm.config import instantiate_model
from ldm.data.shapes import ShapesDataset
from ldm.models.first_stage_module import FirstStageModule
from tests.cli.runs import write


def run_directory(path: Path, config, change=None):
    """A run with the weights that a configuration begins with."""
    torch.manual_seed(0)
    model = instantiate_model(config["model"])
    if change is not None:
        change(model)
    for part in ("checkpoints", "configs"):
        (path / part).mkdir(parents=True)
    torch.save({"state_dict": model.state_dict()}, path / "checkpoints" / "last.ckpt")
    write(path / "configs" / "2026-01-01T00-00-00-project.yaml", config)
    return path


def louder(model: FirstStageModule):
    """Weights that an average of them has not followed."""
    with torch.no_grad():
        model.decoder.conv_out.bias += 0.5


def pictures(directory: Path, *sizes):
    """Drawn scenes as PNG, of sides (height, width)."""
    directory.mkdir(parents=True, exist_ok=True)
    for index, size in enumerate(sizes):
        image = ShapesDataset(size=size, length=index + 1)[index]["image"]
        Image.fromarray(image).save(directory / f"scene{index}.png")
    return directory
