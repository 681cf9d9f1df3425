"""What validation says about a first stage."""

from __future__ import annotations

from torch import Tensor

from ldm.fidelity import SSIM_WINDOW, psnr, ssim
from ldm.losses.autoencoder import FirstStageLoss
from ldm.models.first_stage_step import Autoencoded

__all__ = ["latent_moments", "measures"]

MAX_CHANNELS = 16  # that are logged one by one


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
