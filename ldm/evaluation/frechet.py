"""Distances between sets of images in the features of a network: Frechet distance and score.

Whose features they are decides what the numbers mean: only those of the Inception network of the
TensorFlow release give the FID and the IS that papers report.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["FeatureMoments", "classifier_score", "frechet_distance"]


class FeatureMoments:
    """Mean and covariance of features (B, D) in any number of batches, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None  # (D,)
        self._products: Tensor | None = None  # (D, D), sum of the outer products

    def update(self, features: Tensor) -> None:
        """Count the features (B, D) of one batch."""
        values = features.detach().double().cpu()
        total, products = values.sum(dim=0), values.T @ values
        self._sum = total if self._sum is None else self._sum + total
        self._products = products if self._products is None else self._products + products
        self.count += len(values)

    def mean(self) -> Tensor:
        """Mean (D,), float64."""
        if self._sum is None:
            raise ValueError("no features were counted yet")
        return self._sum / self.count

    def covariance(self) -> Tensor:
        """Unbiased covariance (D, D), float64; ValueError for fewer than two examples."""
        mean = self.mean()
        if self.count < 2 or self._products is None:
            raise ValueError("a covariance needs two examples or more")
        return (self._products - self.count * torch.outer(mean, mean)) / (self.count - 1)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Squared Frechet distance of two Gaussians, in squared units of the features.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), Heusel et al. 2017 (arXiv:1706.08500), eq. (6).
    The trace of the root is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which
    is symmetric, so nothing becomes complex when a covariance is singular.

    mean1, mean2: (D,).  cov1, cov2: (D, D). Computed in float64.
    """
    cov1, cov2 = cov1.double(), cov2.double()
    values, vectors = torch.linalg.eigh(cov1)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    product = root @ cov2 @ root
    # round-off leaves small negative eigenvalues where there should be zeros
    eigenvalues = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0)
    shift = (mean1.double() - mean2.double()).square().sum()
    return float(shift + cov1.trace() + cov2.trace() - 2 * eigenvalues.sqrt().sum())


def classifier_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """exp(E KL(p(y|x) || p(y))) over equal parts of a set: mean and standard deviation.

    The Inception score of Salimans et al. 2016 (arXiv:1606.03498) when the classifier is Inception;
    it uses ten parts.

    logits: (N, classes). The parts are consecutive, and a rest of N / splits is left out.
    Raises ValueError when there are fewer examples than parts.
    """
    size = len(logits) // splits
    if not size:
        raise ValueError(f"{len(logits)} images for {splits} parts; expected one for each at least")
    scores = []
    for part in torch.split(logits[: size * splits].double().cpu(), size):
        log_p = part.log_softmax(dim=1)
        p = log_p.exp()
        log_marginal = p.mean(dim=0).clamp_min(torch.finfo(p.dtype).tiny).log()
        scores.append((p * (log_p - log_marginal)).sum(dim=1).mean().exp())
    stacked = torch.stack(scores)
    return float(stacked.mean()), float(stacked.std(correction=0))
