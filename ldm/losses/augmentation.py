"""Differentiable augmentation of what a discriminator sees: arXiv:2006.10738.

Images and reconstructions are changed alike, and gradients go through the change, so that the
discriminator cannot learn its training images by heart and the autoencoder does not learn to
reconstruct changed images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldm.diffusion.draws import Draws
from ldm.spelling import require_known
from ldm.tensor import expand_to

__all__ = ["DifferentiableAugmentation"]

TRANSLATION = 1 / 8  # largest shift, as a share of the side
CUTOUT = 1 / 2  # side of the square that is cut out, as a share of the image's


class DifferentiableAugmentation:
    """Some of `color`, `translation` and `cutout`, in this order, each as in the paper.

    color: brightness + [-0.5, 0.5), saturation x [0, 2), contrast x [0.5, 1.5) of images in
    [-1, 1].  translation: by up to 1/8 of the side, filled with 0.  cutout: a square of half the
    side, anywhere, set to 0.

    Raises ValueError for other names.
    """

    def __init__(self, names: Sequence[str]) -> None:
        for name in names:
            require_known("disc_augment", name, _CHANGES)
        self.names = [name for name in _CHANGES if name in names]

    def draw(self, draws: Draws) -> Tensor:
        """The random numbers of a batch, (B, 7) uniform in [0, 1): each example's are its own."""
        return torch.stack([draws.uniform(f"augmentation {i}") for i in range(7)], dim=1)

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Changed images (B, C, H, W), differentiable; equal numbers make equal changes."""
        for name in self.names:
            columns, change = _CHANGES[name]
            images = change(images, numbers[:, columns])
        return images


def _colored(x: Tensor, numbers: Tensor) -> Tensor:
    brightness, saturation, contrast = (expand_to(n.to(x.dtype), x) for n in numbers.unbind(dim=1))
    x = x + (brightness - 0.5)
    grey = x.mean(dim=1, keepdim=True)
    x = grey + (x - grey) * (2 * saturation)
    level = x.mean(dim=(1, 2, 3), keepdim=True)
    return level + (x - level) * (contrast + 0.5)


def _translated(x: Tensor, numbers: Tensor) -> Tensor:
    for dim, number in zip((2, 3), numbers.unbind(dim=1), strict=True):
        side = x.shape[dim]
        furthest = int(side * TRANSLATION + 0.5)
        shift = torch.floor(number * (2 * furthest + 1)) - furthest  # (B,)
        source = torch.arange(side, device=x.device) - shift[:, None]  # (B, side)
        inside = (source >= 0) & (source < side)
        shape = (-1, 1, side, 1) if dim == 2 else (-1, 1, 1, side)
        index = source.clamp(0, side - 1).long().view(shape).expand_as(x)
        x = x.gather(dim, index) * inside.view(shape).to(x.dtype)
    return x


def _cut_out(x: Tensor, numbers: Tensor) -> Tensor:
    inside = []
    for side, number in zip(x.shape[2:], numbers.unbind(dim=1), strict=True):
        length = int(side * CUTOUT + 0.5)
        first = torch.floor(number * (side + 1 - length % 2)) - length // 2  # (B,)
        place = torch.arange(side, device=x.device) - first[:, None]  # (B, side)
        inside.append((place >= 0) & (place < length))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]  # (B, 1, H, W)
    return x * (~hole).to(x.dtype)


_CHANGES: dict[str, tuple[slice, Callable[[Tensor, Tensor], Tensor]]] = {
    "color": (slice(0, 3), _colored),
    "translation": (slice(3, 5), _translated),
    "cutout": (slice(5, 7), _cut_out),
}
