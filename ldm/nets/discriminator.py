"""The patch discriminator, and the two normalizations it is published with."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.utils.parametrizations import spectral_norm

from ldm.nets.precision import without_autocast
from ldm.ranks import world_size

__all__ = ["ActNorm", "NLayerDiscriminator", "SyncedBatchNorm2d"]


def _sum_over_ranks(value: Tensor) -> Tensor:
    """The sum over all processes, with a gradient; the value itself when there is one."""
    if world_size() == 1:
        return value
    return cast("Tensor", all_reduce(value))  # type: ignore[no-untyped-call]


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance per channel over the batch of all ranks, and how many values.

    x: (B, C, H, W). Returns (C,), (C,), ().
    """
    ones = x.new_ones((), dtype=torch.float32)
    count = _sum_over_ranks(ones * (x.numel() // x.shape[1])).detach()
    mean = _sum_over_ranks(x.sum(dim=(0, 2, 3))) / count
    # from the deviations, not from the sum of squares, which would cancel
    var = _sum_over_ranks((x - _per_channel(mean)).square().sum(dim=(0, 2, 3))) / count
    return mean, var, count


def _per_channel(value: Tensor) -> Tensor:
    return value[:, None, None]


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization (arXiv:1502.03167) over the batches of all processes, on any device.

    With one process exactly `torch.nn.BatchNorm2d`; the same keys in any case.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns the same shape."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        mean, var, count = _moments(x.float())
        self._track(mean.detach(), (var * count / (count - 1)).detach())
        scale = self.weight * torch.rsqrt(var + self.eps)  # eps: a constant channel
        shift = self.bias - mean * scale
        return torch.addcmul(_per_channel(shift), x, _per_channel(scale)).to(x.dtype)

    def _track(self, mean: Tensor, var: Tensor) -> None:
        """Move the running averages towards the moments of this batch."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var, self.momentum)
        self.num_batches_tracked += 1


class ActNorm(nn.Module):
    """Scale and shift per channel, set by the first training batch to unit variance and zero mean.

    Sec. 3.1 of Glow (arXiv:1807.03039): h = scale (x + loc).
    """

    initialized: Tensor  # () uint8, 1 once set

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, num_features, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, num_features, 1, 1))
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))
        self._is_initialized = False  # known without asking the device

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns the same shape."""
        if self.training and not self._is_initialized:
            self._initialize(x)
        return self.scale * (x + self.loc)

    @torch.no_grad()
    def _initialize(self, x: Tensor) -> None:
        """Set loc and scale, unless a checkpoint already did."""
        if not self.initialized:
            mean, var, count = _moments(x.float())
            std = (var * count / (count - 1)).sqrt()
            self.loc.copy_(-_per_channel(mean))
            self.scale.copy_(1 / (_per_channel(std) + 1e-6))  # a constant channel has std 0
            self.initialized.fill_(1)
        self._is_initialized = True

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._is_initialized = False


class _Conv2d(nn.Conv2d):
    """A convolution whose weight is computed in float32: what a parametrization needs."""

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            weight = self.weight
        out: Tensor = self._conv_forward(x, weight, self.bias)
        return out


class NLayerDiscriminator(nn.Module):
    """PatchGAN: judges overlapping patches of an image, sec. 3.2 of pix2pix (arXiv:1611.07004).

    n_layers convolutions of stride 2, ndf channels after the first, at most 8 ndf.
    use_spectral_norm: divide the weight of each convolution by its largest singular value
    (arXiv:1802.05957). As there, it takes the place of the batch norm, which would undo the bound;
    layers keep their numbers. Each forward pass in training makes one step of the power iteration.

    Raises ValueError for spectral norm together with ActNorm.
    """

    def __init__(
        self,
        input_nc: int = 3,
        ndf: int = 64,
        n_layers: int = 3,
        use_actnorm: bool = False,
        *,
        use_spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        if use_actnorm and use_spectral_norm:
            raise ValueError("use_actnorm: true, but disc_spectral_norm takes the norms' place")
        widths = [ndf * min(2**n, 8) for n in range(n_layers + 1)]
        conv = _Conv2d if use_spectral_norm else nn.Conv2d
        layers: list[nn.Module] = [
            conv(input_nc, ndf, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for n in range(1, n_layers + 1):
            norm: nn.Module = nn.Identity()
            if not use_spectral_norm:
                norm = ActNorm(widths[n]) if use_actnorm else SyncedBatchNorm2d(widths[n])
            layers += [
                conv(
                    widths[n - 1],
                    widths[n],
                    4,
                    stride=1 if n == n_layers else 2,
                    padding=1,
                    # a batch norm has its own shift
                    bias=not isinstance(norm, SyncedBatchNorm2d),
                ),
                norm,
                nn.LeakyReLU(0.2, inplace=True),
            ]
        layers.append(conv(widths[-1], 1, 4, padding=1))
        self.main = nn.Sequential(*layers)
        self.apply(_initialize)
        self.smallest_side = 3 * 2**n_layers  # pixels; the last two convolutions lose a cell each
        if use_spectral_norm:
            for layer in self.main:
                if isinstance(layer, nn.Conv2d):
                    spectral_norm(layer)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, input_nc, H, W) in [-1, 1]. Returns logits (B, 1, h, w), high for real patches."""
        logits: Tensor = self.main(x)
        return logits


def _initialize(module: nn.Module) -> None:
    """Weights of DCGAN (arXiv:1511.06434): N(0, 0.02), norms N(1, 0.02)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
