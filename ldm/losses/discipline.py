"""What keeps a discriminator in bounds: a gradient penalty, and a pull towards its own past."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ldm.nets.precision import without_autocast
from ldm.ranks import mean_over_ranks
from ldm.tensor import mean_flat

__all__ = ["LeCam", "r1_penalty"]


def r1_penalty(judge: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """|grad D(x)|^2 of real images, (B,), with a graph: R1 of arXiv:1801.04406 for gamma = 2.

    judge: images (B, C, H, W) to logits (B, 1, h, w); float32 throughout, whatever the caller's
    autocast. D(x) is the sum over the n = h w patches divided by sqrt(n): for patches that look at
    different pixels this is the mean of their own penalties, so that a weight means the same for
    images of any size; for one patch it is the plain penalty.
    """
    with without_autocast(images):
        leaf = images.detach().float().requires_grad_()
        logits = judge(leaf)
        (gradient,) = torch.autograd.grad(logits.sum(), leaf, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)) / logits[0].numel()


class LeCam(nn.Module):
    """Pulls logits towards the average that the other kind of images had: arXiv:2104.03310.

    |D(x) - a_fake|^2 + |D(x_hat) - a_real|^2, mean over patches. The averages a move by
    1 - decay per call, together with the batches of all processes, and are the same on all of
    them. They are divided by the weight they have collected, so that the first is the first batch's
    mean.
    """

    real: Tensor  # (), running sums: of the mean logit of images,
    fake: Tensor  # (), of reconstructions,
    mass: Tensor  # (), and of the weights of both

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        for name in ("real", "fake", "mass"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        """Move the averages and return the penalty (B,) of logits (B, 1, h, w)."""
        means = torch.stack([logits_real.detach().mean(), logits_fake.detach().mean()]).float()
        real, fake = mean_over_ranks(means).unbind()
        one = torch.ones_like(self.mass)
        for total, value in ((self.real, real), (self.fake, fake), (self.mass, one)):
            total.lerp_(value, 1 - self.decay)
        average_real, average_fake = self.real / self.mass, self.fake / self.mass
        return mean_flat((logits_real - average_fake).square()) + mean_flat(
            (logits_fake - average_real).square()
        )
