"""The network whose features sets of images are compared in, and what it is called."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.config import ConfigError, build, load, to_plain
from ldm.io.digest import sha256_of

__all__ = ["Extractor", "configured_extractor", "inception"]


@dataclass(frozen=True)
class Extractor:
    """A network that turns uint8 images (B, 3, H, W) into features (B, D).

    net: returns features, or a tuple of features and logits (B, classes). It resizes as it needs.
    label: what it is, for the record.  is_inception: whether its numbers are FID and IS.
    """

    net: nn.Module
    label: str
    is_inception: bool

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (B, D) of uint8 images (B, 3, H, W), and logits where the network has them.

        Raises ConfigError when the network returns something else.
        """
        made = self.net(images)
        features, logits = made if isinstance(made, tuple | list) else (made, None)
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            found = tuple(features.shape) if isinstance(features, Tensor) else type(features)
            raise ConfigError(
                f"{self.label}: gave {found} for {len(images)} images; expected features (B, D), "
                "or these and logits"
            )
        return features, logits


def inception(weights: str | Path, device: torch.device) -> Extractor:
    """The Inception network of FID, by torch-fidelity, with the weights of a local file.

    Raises ConfigError when there is no such file, it is not the network's, or torch-fidelity is not
    installed.
    """
    path = Path(weights)
    if not path.is_file():
        raise ConfigError(f"--inception-weights {path}: no such file")
    if importlib.util.find_spec("torch_fidelity") is None:
        raise ConfigError(
            "--inception-weights: needs torch-fidelity, which is not installed: pip install "
            "'.[eval]'; or name a network of yours with --features YAML"
        )
    module: Any = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    try:
        net = module.FeatureExtractorInceptionV3(
            "inception-v3-compat",
            ["2048", "logits_unbiased"],
            feature_extractor_weights_path=str(path),
        )
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--inception-weights {path}: does not fit: {reason}") from error
    label = (
        f"inception-v3-compat of torch-fidelity {version('torch-fidelity')}, {path.name} "
        f"(sha256 {sha256_of(path)})"
    )
    return Extractor(net.eval().requires_grad_(False).to(device), label, is_inception=True)


def configured_extractor(file: str | Path, device: torch.device) -> Extractor:
    """A network that a YAML file names by `target` and `params`, see `Extractor`.

    It must bring its own weights; what the file says is its label.
    Raises ConfigError for a file that names none.
    """
    config = to_plain(load([file]))
    net = build(config, path=str(file))
    if not isinstance(net, nn.Module):
        raise ConfigError(f"--features {file}: expected a `target` that is a torch module")
    given = (config.get("params") or {}) if isinstance(config, Mapping) else {}
    label = f"{config['target']} {given}".removesuffix(" {}")
    return Extractor(net.eval().requires_grad_(False).to(device), label, is_inception=False)
