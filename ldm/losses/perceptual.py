"""LPIPS: perceptual distance between images in the features of VGG16.

Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric
(arXiv:1801.03924), eq. (1), version 0.1. The five linear heads come with the `lpips` package; the
13 convolutions of VGG16 are a file the user brings, and this module never downloads it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.nets.layout import arranged

__all__ = ["LPIPS", "VGG16_FILE", "LpipsChannels"]

LpipsChannels: TypeAlias = Sequence[int] | Literal["each"] | None

VGG16_FILE = "vgg16-397923af.pth"

# Width of each stage and the indices of its convolutions in torchvision's `vgg16().features`;
# a 2x2 max pooling stands between stages.
STAGES = (
    (64, (0, 2)),
    (128, (5, 7)),
    (256, (10, 12, 14)),
    (512, (17, 19, 21)),
    (512, (24, 26, 28)),
)


class LPIPS(nn.Module):
    """Learned perceptual distance, always in eval mode and frozen.

    weights: VGG16 as torchvision publishes it (`vgg16-397923af.pth`), or a complete LPIPS state
    dict. By default the file is taken from torch's hub cache when it is there.
    Building without weights works, since a checkpoint may bring them; comparing images does not
    (`require_weights`).

    lpips_channels: how images become the three channels that the network sees. None: three as they
    are, one repeated, others are an error. Three indices, counted from 0: these channels, as red,
    green and blue. `each`: every channel by itself, repeated, and the mean of their distances; time
    and memory grow with the number of channels.
    """

    smallest_side = 2 ** (len(STAGES) - 1)  # pixels that leave something to the last stage

    def __init__(
        self, weights: str | Path | None = None, lpips_channels: LpipsChannels = None
    ) -> None:
        super().__init__()
        self.lpips_channels = _checked(lpips_channels)
        self.scaling_layer = _Scaling()
        self.net = _VGG16()
        for stage, (width, _) in enumerate(STAGES):
            self.add_module(f"lin{stage}", _Head(width))
        self.requires_grad_(False)
        self.eval()
        self.weights = weights
        self._has_weights = False
        path = _vgg16_path(weights)
        if path.is_file() and not self._is_meta():
            self.load_state_dict(self.state_dict() | _read_weights(path))
        elif weights is not None and not path.is_file():
            raise ValueError(_missing(path))

    def forward(self, inputs: Tensor, reconstructions: Tensor) -> Tensor:
        """Distance of each pair of images, (B, 1, 1, 1), without a unit; 0 for equal images.

        inputs, reconstructions: (B, C, H, W) in [-1, 1] with as many channels as `lpips_channels`
        allows. Only `reconstructions` can get a gradient.
        """
        self.require_weights()
        self.require_channels(inputs.shape[1])
        if self.lpips_channels != "each":
            return self._distance(self._selected(inputs), self._selected(reconstructions))
        pages = (images.flatten(0, 1)[:, None] for images in (inputs, reconstructions))
        distances = self._distance(*pages).reshape(inputs.shape[:2])  # (B, C)
        return distances.mean(dim=1)[:, None, None, None]

    def require_channels(self, count: int) -> None:
        """Raise ValueError when images of so many channels cannot be compared."""
        chosen = self.lpips_channels
        if chosen is None and count not in (1, 3):
            raise ValueError(
                f"LPIPS compares images of 3 channels, or 1 that is repeated, got {count}; choose "
                "with lossconfig.params.lpips_channels: three indices such as [0, 1, 2], or each; "
                "or train without the perceptual term: lossconfig.params.perceptual_weight: 0"
            )
        if isinstance(chosen, tuple) and max(chosen) >= count:
            raise ValueError(
                f"lpips_channels={list(chosen)}: images have {count} channels, expected indices "
                f"from 0 to {count - 1}"
            )

    def _selected(self, images: Tensor) -> Tensor:
        chosen = self.lpips_channels
        return images[:, list(chosen)] if isinstance(chosen, tuple) else images

    def _distance(self, inputs: Tensor, reconstructions: Tensor) -> Tensor:
        """Distance (B, 1, 1, 1) of images of three channels or one."""
        with torch.no_grad():
            targets = [_unit_length(f) for f in self.net(self.scaling_layer(inputs))]
        features = self.net(self.scaling_layer(reconstructions))
        distance = torch.zeros(len(inputs), device=inputs.device)
        for stage, (target, feature) in enumerate(zip(targets, features, strict=True)):
            difference = (target - _unit_length(feature)).square().mean(dim=(2, 3))  # (B, C)
            head = self.get_parameter(f"lin{stage}.model.1.weight").flatten()
            distance = distance + (difference * head).sum(dim=1)
        return distance[:, None, None, None]

    def require_weights(self) -> None:
        """Raise ValueError when neither a file nor a checkpoint has brought the weights."""
        if not self._has_weights:
            raise ValueError(_missing(_vgg16_path(self.weights)))

    def train(self, mode: bool = True) -> LPIPS:
        """Stay in eval mode: a metric does not train."""
        return super().train(False)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        *rest: Any,
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if all(prefix + name in state_dict for name, _ in self.named_parameters()):
            self._has_weights = True

    def _is_meta(self) -> bool:
        return any(parameter.is_meta for parameter in self.parameters())


class _Scaling(nn.Module):
    """[-1, 1] to the statistics VGG16 was trained on (ImageNet's, in units of [0, 1])."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[None, :, None, None])
        self.shift: Tensor
        self.scale: Tensor

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.shift) / self.scale  # (B, 1, H, W) broadcasts to 3 channels


class _VGG16(nn.Module):
    """Convolutions of VGG16 (arXiv:1409.1556), cut after the last ReLU of each of five stages."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *(width for width, _ in STAGES))
        for number, ((c_in, c_out), (_, indices)) in enumerate(
            zip(pairwise(widths), STAGES, strict=True), start=1
        ):
            stage = nn.ModuleDict()
            for index in indices:
                stage[str(index)] = nn.Conv2d(c_in, c_out, 3, padding=1)
                c_in = c_out
            self.add_module(f"slice{number}", stage)

    def forward(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        for stage in self.children():
            if features:
                x = F.max_pool2d(x, 2)
            x = arranged(x)
            for conv in stage.children():
                x = F.relu(conv(x))
            features.append(x)
        return features


class _Head(nn.Module):
    """Holds the non-negative weight of each channel under its published name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # index 0 was the dropout the heads were trained with
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))


def _checked(channels: LpipsChannels) -> tuple[int, ...] | Literal["each"] | None:
    if channels is None or channels == "each":
        return channels
    if isinstance(channels, str) or len(channels) != 3 or min(channels) < 0:
        raise ValueError(
            f"lpips_channels={channels!r}: expected three channels, counted from 0, or 'each'"
        )
    return tuple(channels)


def _unit_length(features: Tensor) -> Tensor:
    # float32: the difference of two normalised bfloat16 features is mostly rounding
    features = features.float()
    # 1e-20 guards pixels at which every channel is off; their gradient is cut by the ReLU before
    return features * torch.rsqrt(features.square().sum(dim=1, keepdim=True) + 1e-20)


def _vgg16_path(weights: str | Path | None) -> Path:
    if weights is not None:
        return Path(weights).expanduser()
    return Path(torch.hub.get_dir()) / "checkpoints" / VGG16_FILE


def _missing(path: Path) -> str:
    return (
        f"LPIPS has no weights: {VGG16_FILE} was looked for at {path}. Put torchvision's VGG16 "
        "file there, name its path in lossconfig.params.lpips_weights, or train without the "
        "perceptual term: lossconfig.params.perceptual_weight: 0"
    )


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Weights of the convolutions and the heads, from a file of VGG16 or of a complete LPIPS."""
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is not what it seems makes the reader raise anything
        raise ValueError(
            f"{path}: cannot be read as weights ({type(error).__name__}); expected torchvision's "
            "VGG16 or an LPIPS state dict"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: holds a {type(state).__name__}; expected a state dict")
    if "features.0.weight" in state:
        convolutions = {
            ours: state[theirs] for ours, theirs in _torchvision_names().items() if theirs in state
        }
        state = convolutions | _packaged_heads()
    names = [*_torchvision_names(), *(f"lin{stage}.model.1.weight" for stage in range(len(STAGES)))]
    missing = [name for name in names if name not in state]
    if missing:
        raise ValueError(
            f"{path} is neither torchvision's VGG16 nor an LPIPS state dict: "
            f"{len(missing)} tensors are missing, the first is {missing[0]}"
        )
    return {name: state[name] for name in names}


def _torchvision_names() -> dict[str, str]:
    """Names of the convolutions' tensors in a state dict of LPIPS, and in torchvision's."""
    return {
        f"net.slice{number}.{index}.{kind}": f"features.{index}.{kind}"
        for number, (_, indices) in enumerate(STAGES, start=1)
        for index in indices
        for kind in ("weight", "bias")
    }


def _packaged_heads() -> dict[str, Tensor]:
    """Linear heads of version 0.1; the package is located, not imported: it needs torchvision."""
    spec = importlib.util.find_spec("lpips")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("the heads of LPIPS come with the package lpips: pip install lpips")
    path = Path(spec.submodule_search_locations[0]) / "weights" / "v0.1" / "vgg.pth"
    heads: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return heads
