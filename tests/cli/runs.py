"""Small configurations of both stages, and ways to run the command line on them."""

import atexit
import copy
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from ldm.cli.train import train
from tests.forked import ForkServer, Order
from tests.models.first_stages import NETWORK

ROOT = Path(__file__).parents[2]
MAIN = ROOT / "main.py"

_DDCONFIG = {**NETWORK, "double_z": True, "z_channels": 4, "dropout": 0.1}
_SHAPES = "ldm.data.shapes.ShapesDataset"
_DATA = {
    "target": "ldm.data.module.DataModuleFromConfig",
    "params": {
        "batch_size": 4,
        "num_workers": 0,
        "train": {"target": _SHAPES, "params": {"size": 16, "length": 24}},
        "validation": {
            "target": _SHAPES,
            "params": {"size": 16, "length": 4, "split": "validation"},
        },
    },
}
_LIGHTNING = {
    "trainer": {
        "max_steps": 10,
        "precision": "32-true",
        "accelerator": "cpu",
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    },
    "callbacks": {
        "image_logger": {
            "params": {"batch_frequency": 4, "max_images": 2, "increase_log_steps": False}
        }
    },
}


def script_module(name: str) -> ModuleType:
    """`scripts/NAME.py` as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def script(name: str) -> Callable[[Sequence[str]], None]:
    """The function that a script of this name is: `scripts/NAME.py` defines `NAME(argv)`."""
    function: Callable[[Sequence[str]], None] = getattr(script_module(name), name)
    return function


def first_stage() -> dict[str, Any]:
    """A KL autoencoder for 16 x 16 pictures, with its discriminator from step 2 on."""
    loss = {"disc_start": 2, "disc_num_layers": 2, "perceptual_weight": 0}
    params = {
        "embed_dim": 4,
        "monitor": "val/rec_loss",
        "ddconfig": _DDCONFIG,
        "lossconfig": {
            "target": "ldm.losses.autoencoder.LPIPSWithDiscriminator",
            "params": loss,
        },
    }
    model = {
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "learning_rate": 1e-3,
        "params": params,
    }
    return copy.deepcopy({"model": model, "data": _DATA, "lightning": _LIGHTNING})


def second_stage(first_stage_checkpoint: str | None = None) -> dict[str, Any]:
    """A class-conditional latent diffusion model with dropout, on 8 x 8 latents."""
    unet = {
        "image_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "channel_mult": [1, 2],
        "num_res_blocks": 1,
        "attention_resolutions": [2],
        "num_head_channels": 32,
        "use_spatial_transformer": True,
        "context_dim": 16,
        "dropout": 0.1,
    }
    tau = {"key": "class_label", "embed_dim": 16, "n_classes": 25, "drop_rate": 0.1}
    autoencoder = {
        "ckpt_path": first_stage_checkpoint,
        "embed_dim": 4,
        "ddconfig": _DDCONFIG,
        "lossconfig": {"target": "torch.nn.Identity"},
    }
    params = {
        "image_size": 8,
        "linear_start": 0.0015,
        "linear_end": 0.0195,
        "scale_by_std": True,
        "cond_stage_key": "class_label",
        "cond_stage_trainable": True,
        "conditioning_key": "crossattn",
        "cond_stage_config": {
            "target": "ldm.conditioning.labels.ClassEmbedder",
            "params": tau,
        },
        "unet_config": {"target": "ldm.nets.unet.UNetModel", "params": unet},
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": autoencoder,
        },
    }
    model = {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "learning_rate": 1e-3,
        "params": params,
    }
    lightning = copy.deepcopy(_LIGHTNING)
    lightning["callbacks"]["image_logger"]["params"]["log_images_kwargs"] = {"steps": 2}
    return copy.deepcopy({"model": model, "data": _DATA, "lightning": lightning})


def unconditional(first_stage_checkpoint: str | None = None) -> dict[str, Any]:
    """A latent diffusion model without a condition."""
    config = second_stage(first_stage_checkpoint)
    for key in ("cond_stage_key", "cond_stage_trainable", "conditioning_key", "cond_stage_config"):
        del config["model"]["params"][key]
    unet = config["model"]["params"]["unet_config"]["params"]
    unet |= {"use_spatial_transformer": False, "context_dim": None}
    return config


def write(path: Path, config: dict[str, Any]) -> str:
    """The configuration as a YAML file."""
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return str(path)


def trained(place: Path, **configs: dict[str, Any]) -> dict[str, Path]:
    """The run directory of each configuration, trained for two steps under a directory."""
    flags = ["-t", "-l", str(place / "logs"), "--max_steps", "2"]
    return {
        name: train(["-b", write(place / f"{name}.yaml", config), *flags]).path
        for name, config in configs.items()
    }


def pixels(path: Path) -> NDArray[np.uint8]:
    """Those of an image file."""
    with Image.open(path) as image:
        return np.asarray(image)


def start_main(argv: list[str], directory: Path) -> subprocess.Popen[str]:
    """Start the command line in a process of its own, in a directory, where it sees no GPU."""
    return subprocess.Popen(
        [sys.executable, str(MAIN), *argv],
        cwd=directory,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(ROOT),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@cache
def _server() -> ForkServer:
    server = ForkServer()
    atexit.register(server.close)
    return server


def run_main(argv: list[str], directory: Path, timeout: float = 120) -> tuple[int, str]:
    """Run the command line in a process forked for it; exit code and what it said.

    Raises TimeoutError when it takes longer than so many seconds.
    """
    with TemporaryDirectory() as place:
        said = Path(place) / "said"
        child = _server().start(Order(argv, str(directory), str(said)))
        code = child.wait(timeout)
        if code is None:
            child.kill_group()
            raise TimeoutError(f"after {timeout} s: {said.read_text()}")
        return code, said.read_text()


def only_run(logdir: Path) -> Path:
    """The one run directory under a log directory."""
    (run,) = logdir.iterdir()
    return run
