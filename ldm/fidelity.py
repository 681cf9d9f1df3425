"""How close reconstructions are to their images, pixel by pixel and window by window.

The measures compare what a viewer gets: reconstructions are clamped to [-1, 1] first. They are
float32, whatever the networks ran in.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from ldm.nets.precision import without_autocast
from ldm.tensor import mean_flat

__all__ = ["DETAIL_WINDOW", "SSIM_WINDOW", "Sharpness", "detail", "psnr", "ssim"]

SSIM_WINDOW = 11  # pixels of the Gaussian window along one side
DETAIL_WINDOW = 3  # pixels of the Laplacian along one side
_SSIM_SIGMA = 1.5  # its standard deviation in pixels
_PEAK = 2.0  # images are in [-1, 1]


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,): 10 log10(2^2 / mean squared error).

    images, reconstructions: (B, C, H, W) in [-1, 1], so the peak is 2. The mean is over channels
    and pixels. An exact reconstruction counts 100 dB instead of infinity.
    Raises ValueError when the shapes differ.
    """
    _require_pairs(images, reconstructions)
    error = mean_flat((images.float() - reconstructions.float().clamp(-1, 1)).square())
    return 10 * (_PEAK**2 / error.clamp_min(_PEAK**2 * 1e-10)).log10()


def ssim(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Structural similarity, (B,), without a unit; 1 for equal images.

    Wang et al. 2004, eq. (13): with means m, variances v and covariance c of the two images in a
    Gaussian window of 11 x 11 pixels and standard deviation 1.5,
    (2 m1 m2 + (0.01 L)^2) (2 c + (0.03 L)^2) / ((m1^2 + m2^2 + ...) (v1 + v2 + ...)), L = 2, its
    mean over the channels and over a window at every pixel, the images continued by reflection, as
    torchmetrics computes it. Programs that leave out the windows across the border give numbers
    that differ in the second decimal for small images.

    images, reconstructions: (B, C, H, W) in [-1, 1].
    Raises ValueError when the shapes differ, and for images smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # slow to import

    _require_pairs(images, reconstructions)
    height, width = images.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(
            f"images are {height} x {width} pixels; SSIM needs at least {SSIM_WINDOW} x "
            f"{SSIM_WINDOW}, the size of its window"
        )
    with without_autocast(images):  # or it would convolve in half precision
        similarity = structural_similarity_index_measure(
            reconstructions.float().clamp(-1, 1),
            images.float(),
            gaussian_kernel=True,
            sigma=_SSIM_SIGMA,
            kernel_size=SSIM_WINDOW,
            data_range=_PEAK,
            reduction="none",
        )
    assert isinstance(similarity, Tensor)
    return similarity.reshape(len(images))


def detail(images: Tensor) -> Tensor:
    """How much fine detail images have, (B,), in their units, right or wrong.

    The mean of |4 x - left - right - above - below|, the discrete Laplacian, over the channels and
    the pixels off the border.

    images: (B, C, H, W), clamped to [-1, 1] first, H and W at least 3.
    """
    x = images.float().clamp(-1, 1)
    kernel = x.new_tensor([[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]])
    planes = x.flatten(0, 1)[:, None]  # (B C, 1, H, W)
    with without_autocast(images):
        edges = F.conv2d(planes, kernel[None, None])
    return edges.abs().view(*x.shape[:2], -1).mean(dim=(1, 2))


class Sharpness(Metric):
    """Fine detail of all reconstructions over that of all their images, without a unit.

    Below 1 reconstructions are blurred; above 1 they have detail that the images have not, such as
    noise. It is a ratio of sums over all batches and ranks, so an image counts by its own detail,
    and one that is blank decides nothing. Where all are blank there is no such ratio: inf or nan.
    """

    made: Tensor
    given: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("made", "given"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, images: Tensor, reconstructions: Tensor) -> None:
        """Add images and their reconstructions, (B, C, H, W), in [-1, 1] as far as they count."""
        self.made = self.made + detail(reconstructions).double().sum()
        self.given = self.given + detail(images).double().sum()

    def compute(self) -> Tensor:
        """The ratio so far, 0-d."""
        return self.made / self.given


def _require_pairs(images: Tensor, reconstructions: Tensor) -> None:
    if images.shape != reconstructions.shape or images.ndim != 4:
        raise ValueError(
            f"images {tuple(images.shape)} and reconstructions {tuple(reconstructions.shape)}: "
            "expected two batches (B, C, H, W) of one shape"
        )
