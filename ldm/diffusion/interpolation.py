"""Between two noises: along the sphere on which Gaussian noise lies."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.tensor import expand_to

__all__ = ["slerp"]

PARALLEL = 1e-6  # sine of the angle from which on the ratio of sines below is no number any more


def slerp(a: Tensor, b: Tensor, share: float | Tensor) -> Tensor:
    """Spherical interpolation from a to b, image by image (Shoemake, SIGGRAPH 1985).

    With the angle w between them and their norms,

        n (sin((1 - share) w) a / |a| + sin(share w) b / |b|) / sin(w),
        n = (1 - share) |a| + share |b|,

    so that what lies between two noises is as long as noise is: the mean of two has 0.71 of the
    length, and a model takes it for a state with less noise. Where a and b are nearly parallel,
    opposite or zero it is linear, as no great circle is the only one through them.

    a, b: (B, ...).  share: 0 to 1, exactly a and exactly b; a number, or one for each image (B,).
    Returns (B, ...) of the type of a. Raises ValueError for a share out of range.
    """
    share = torch.as_tensor(share, dtype=torch.float64, device=a.device)
    if not bool(((share >= 0) & (share <= 1)).all()):
        raise ValueError(f"share is {share.tolist()}, expected 0 to 1")
    flat_a, flat_b = a.double().flatten(1), b.double().flatten(1)
    norm_a, norm_b = flat_a.norm(dim=1), flat_b.norm(dim=1)
    # the arc cosine of a product says nothing of small angles; this is as exact for all of them
    cross, along = flat_a * norm_b[:, None], flat_b * norm_a[:, None]
    angle = 2 * torch.atan2((cross - along).norm(dim=1), (cross + along).norm(dim=1))
    norm = (1 - share) * norm_a + share * norm_b
    is_line = angle.sin() < PARALLEL
    sine = angle.sin().where(~is_line, 1)
    of_a = torch.sin((1 - share) * angle) / sine * (norm / norm_a)
    of_b = torch.sin(share * angle) / sine * (norm / norm_b)
    of_a, of_b = (1 - share).where(is_line, of_a), share.where(is_line, of_b)
    return (expand_to(of_a, a) * a + expand_to(of_b, b) * b).to(a.dtype)
