"""The posterior of a KL autoencoder: a Gaussian with diagonal covariance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["DiagonalGaussian", "normal_kl"]

LOGVAR_RANGE = (-30.0, 20.0)


class DiagonalGaussian:
    """q(z | x) = N(mean, diag(exp(logvar))), read from the moments an encoder predicts.

    parameters: (B, 2c, h, w), mean and log-variance stacked on channels. The log-variance is
    clamped to [-30, 20], in which exp() and its inverse stay finite in float32.
    deterministic: the standard deviation is 0, so that a sample is the mean.
    Statistics are float32 whatever the encoder ran in.
    """

    def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
        if parameters.shape[1] % 2:
            raise ValueError(
                f"moments have {parameters.shape[1]} channels; an even number was expected, "
                "mean and log-variance"
            )
        self.parameters = parameters
        self.deterministic = deterministic
        self.mean, logvar = parameters.float().chunk(2, dim=1)
        self.logvar = logvar.clamp(*LOGVAR_RANGE)
        if deterministic:
            self.std = self.var = torch.zeros_like(self.mean)
        else:
            self.std = torch.exp(0.5 * self.logvar)
            self.var = torch.exp(self.logvar)

    def sample(
        self, noise: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw z = mean + std * noise, (B, c, h, w).

        noise: (B, c, h, w) standard normal; drawn from `generator` when it is not given.
        """
        if noise is None:
            noise = torch.randn(self.mean.shape, device=self.mean.device, generator=generator)
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        """The most likely latent, which is the mean: (B, c, h, w)."""
        return self.mean

    def kl(self, other: DiagonalGaussian | None = None) -> Tensor:
        """KL(self || other) in nats, summed over a latent: (B,); `other` is N(0, I) by default."""
        if self.deterministic:
            return _no_density(self.mean)
        if other is None:
            terms = self.mean.square() + self.var - 1.0 - self.logvar
            return 0.5 * terms.sum(dim=(1, 2, 3))
        return normal_kl(self.mean, self.logvar, other.mean, other.logvar).sum(dim=(1, 2, 3))

    def nll(self, sample: Tensor, dims: Sequence[int] = (1, 2, 3)) -> Tensor:
        """-log q(sample) in nats, summed over `dims`: (B,) by default."""
        if self.deterministic:
            return _no_density(self.mean)
        terms = math.log(2.0 * math.pi) + self.logvar + (sample - self.mean).square() / self.var
        return 0.5 * terms.sum(dim=tuple(dims))


def _no_density(like: Tensor) -> Tensor:
    # published: a point mass reports a divergence of zero, as one number whatever the batch
    return torch.zeros(1, device=like.device)


def normal_kl(mean1: Tensor, logvar1: Tensor, mean2: Tensor, logvar2: Tensor | float) -> Tensor:
    """KL(N(mean1, exp(logvar1)) || N(mean2, exp(logvar2))) in nats, element by element."""
    logvar2 = torch.as_tensor(logvar2, dtype=mean1.dtype, device=mean1.device)
    ratio = torch.exp(logvar1 - logvar2)
    distance = (mean1 - mean2).square() * torch.exp(-logvar2)
    return 0.5 * (logvar2 - logvar1 - 1.0 + ratio + distance)
