"""A mixture of four Gaussians in the plane, whose ideal denoiser is known and not linear."""

from dataclasses import dataclass

import torch

from ldm.tensor import expand_to
from ldm.types import Prediction

CENTRES = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


@dataclass
class MixtureDenoiser:
    """E[x0 | x_t] and the eps that goes with it.  x_t: (B, 2, 1, 1).  std: of each mode."""

    schedule: object
    std: float = 0.3

    def __call__(self, x_t, t, cond):
        alpha, sigma = (expand_to(level, x_t[..., 0]) for level in self.schedule.coefficients(t))
        x = x_t[:, None, :, 0, 0]  # (B, 1, 2) against modes (4, 2)
        centres, weights = CENTRES.to(x_t), WEIGHTS.to(x_t)
        precision = (alpha * self.std) ** 2 + sigma**2
        log_weight = weights.log() - ((x - alpha * centres) ** 2).sum(-1) / (2 * precision[..., 0])
        of_mode = log_weight.softmax(dim=1)[..., None]
        x0 = (of_mode * (centres * sigma**2 + self.std**2 * alpha * x) / precision).sum(dim=1)
        eps = (of_mode * sigma * (x - alpha * centres) / precision).sum(dim=1)
        return Prediction(x0=x0[..., None, None], eps=eps[..., None, None])
