"""The adversarial game of the first stage: both sides' losses and the balance between them.

Esser et al., Taming Transformers for High-Resolution Image Synthesis (arXiv:2012.09841), eqs.
(5)-(7), with the patch discriminator of Isola et al. (arXiv:1611.07004). Logits are
(B, 1, h, w), high where a patch looks real; losses are per example, (B,).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.spelling import require_known
from ldm.tensor import mean_flat

__all__ = [
    "adopt_weight",
    "bounded_weight",
    "deception_loss",
    "discriminator_loss",
    "generator_loss",
    "gradient_ratio",
    "hinge_d_loss",
    "non_saturating_g_loss",
    "vanilla_d_loss",
]

DiscriminatorLoss = Callable[[Tensor, Tensor], Tensor]
GeneratorLoss = Callable[[Tensor], Tensor]


def hinge_d_loss(logits_real: Tensor, logits_fake: Tensor, weights: Tensor | None = None) -> Tensor:
    """Half of max(0, 1 - D(x)) + max(0, 1 + D(x_hat)), mean over patches: (B,).

    weights: (B,), the importance of each example; they are normalised to mean one.
    """
    real, fake = mean_flat(F.relu(1.0 - logits_real)), mean_flat(F.relu(1.0 + logits_fake))
    loss = 0.5 * (real + fake)
    return loss if weights is None else loss * (weights / weights.mean())


def vanilla_d_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Half of -log s(D(x)) - log(1 - s(D(x_hat))), s the sigmoid, mean over patches: (B,)."""
    return 0.5 * (mean_flat(F.softplus(-logits_real)) + mean_flat(F.softplus(logits_fake)))


def generator_loss(logits_fake: Tensor) -> Tensor:
    """-D(x_hat), mean over patches, for the hinge and the vanilla loss: (B,)."""
    return -mean_flat(logits_fake)


def non_saturating_g_loss(logits_fake: Tensor) -> Tensor:
    """-log s(D(x_hat)), mean over patches: (B,), sec. 3 of arXiv:1406.2661.

    Its gradient fades once the discriminator is deceived; that of `generator_loss` never does.
    """
    return mean_flat(F.softplus(-logits_fake))


_LOSSES: dict[str, tuple[DiscriminatorLoss, GeneratorLoss]] = {
    "hinge": (hinge_d_loss, generator_loss),
    "vanilla": (vanilla_d_loss, generator_loss),  # published: not this loss's own counterpart
    "non-saturating": (vanilla_d_loss, non_saturating_g_loss),
}


def discriminator_loss(name: str) -> DiscriminatorLoss:
    """The discriminator's loss of this name: `hinge`, `vanilla`, `non-saturating`.

    Raises ValueError for another.
    """
    require_known("disc_loss", name, _LOSSES)
    return _LOSSES[name][0]


def deception_loss(name: str) -> GeneratorLoss:
    """The generator's loss in the game of this name; ValueError for another."""
    require_known("disc_loss", name, _LOSSES)
    return _LOSSES[name][1]


def adopt_weight(weight: float, step: int, threshold: int = 0, value: float = 0.0) -> float:
    """`weight` from step `threshold` on, `value` before it."""
    return weight if step >= threshold else value


def gradient_ratio(nll_gradient: Tensor, generator_gradient: Tensor) -> Tensor:
    """Balance that gives both losses gradients of one size at the decoder's last layer.

    Eq. (7): |d nll / dW| / (|d g / dW| + 1e-4), 0-d float32, without a graph; NaN where either norm
    is not finite. The small number keeps it bounded for a discriminator that has no opinion.
    """
    nll, game = nll_gradient.float().norm(), generator_gradient.float().norm()
    return torch.where(torch.isfinite(nll + game), nll / (game + 1e-4), torch.nan).detach()


def bounded_weight(ratio: Tensor, maximum: float) -> Tensor:
    """A `gradient_ratio` as a weight in [0, maximum], 0 where it is NaN."""
    return torch.nan_to_num(ratio, nan=0.0).clamp(0.0, maximum)
