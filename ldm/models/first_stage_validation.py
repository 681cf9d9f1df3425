"""What validation says about a first stage."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from ldm.fidelity import SSIM_WINDOW, detail, psnr, ssim
from ldm.losses.autoencoder import FirstStageLoss
from ldm.models.first_stage_step import Autoencoded

__all__ = ["Sharpness", "latent_moments", "measures"]

MAX_CHANNELS = 16  # that are logged one by one


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
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, images: Tensor, reconstructions: Tensor) -> None:
        """Add images and their reconstructions, (B, C, H, W), in [-1, 1] as far as they count."""
        self.made = self.made + detail(reconstructions).sum()
        self.given = self.given + detail(images).sum()

    def compute(self) -> Tensor:
        """The ratio so far, 0-d."""
        return self.made / self.given


def measures(
    loss: FirstStageLoss, images: Tensor, *, made: Autoencoded, step: int
) -> dict[str, Tensor]:
    """Parts of the loss, PSNR in dB, SSIM, LPIPS, moments of latents; (B,), (1,) or 0-d.

    LPIPS, without its weight, is there when the loss has it; SSIM from 11 pixels on.
    images: (B, C, H, W) in [-1, 1].  step: optimizer step, which decides whether there is a game.
    """
    nll = loss.reconstruction(images, made.reconstruction)
    cost = loss.regularization(made.cost, made.codes)
    total = nll.total + cost.total
    metrics = nll.parts | cost.parts | {"total_loss": total, "aeloss": total}
    metrics["psnr"] = psnr(images, made.reconstruction)
    if min(images.shape[-2:]) >= SSIM_WINDOW:
        metrics["ssim"] = ssim(images, made.reconstruction)
    if loss.perceptual_loss is not None:
        metrics["lpips"] = nll.parts["p_loss"]
    metrics |= latent_moments(made.z)
    if loss.factor(step):
        logits = loss.judge(images), loss.judge(made.reconstruction)
        metrics |= loss.discrimination(*logits, step=step).parts
        metrics["g_loss"] = loss.deception(logits[1])
    return metrics


def latent_moments(z: Tensor) -> dict[str, Tensor]:
    """Mean and standard deviation over a batch of latents (B, c, h, w), in their units, 0-d each.

    `latent_std` is that of all numbers. `latent_mean_0`, `latent_std_0` and so on are those of the
    channels; of more than 16 channels the mean, the least and the greatest: `latent_mean_min`.
    """
    z = z.float()
    metrics = {"latent_std": z.std()}
    by_channel = {"latent_mean": z.mean(dim=(0, 2, 3)), "latent_std": z.std(dim=(0, 2, 3))}
    for name, values in by_channel.items():
        if len(values) <= MAX_CHANNELS:
            metrics |= {f"{name}_{i}": value for i, value in enumerate(values.unbind())}
        else:
            summary = {"mean": values.mean(), "min": values.min(), "max": values.max()}
            metrics |= {f"{name}_{kind}": value for kind, value in summary.items()}
    return metrics
