"""What validation says about a first stage."""

from __future__ import annotations

from torch import Tensor

from ldm.fidelity import psnr
from ldm.losses.autoencoder import FirstStageLoss
from ldm.models.first_stage_step import Autoencoded

__all__ = ["measures"]


def measures(
    loss: FirstStageLoss, images: Tensor, made: Autoencoded, step: int
) -> dict[str, Tensor]:
    """Parts of the loss, PSNR in dB, deviation of the latents; each (B,), (1,) or 0-d.

    images: (B, C, H, W) in [-1, 1].  step: optimizer step, which decides whether there is a game.
    """
    nll = loss.reconstruction(images, made.reconstruction)
    cost = loss.regularization(made.cost, made.codes)
    total = nll.total + cost.total
    metrics = nll.parts | cost.parts | {"total_loss": total, "aeloss": total}
    metrics["psnr"] = psnr(images, made.reconstruction)
    metrics["latent_std"] = made.z.float().std()
    if loss.factor(step):
        logits = loss.judge(images), loss.judge(made.reconstruction)
        metrics |= loss.discrimination(*logits, step=step).parts
        metrics["g_loss"] = loss.deception(logits[1])
    return metrics
