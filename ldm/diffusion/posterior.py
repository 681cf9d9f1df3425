"""The reverse of the process: q(x_s | x_t, x0), and the bound on -log p(x0) made of it."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.draws import Draws, normal_like
from ldm.diffusion.schedule import DiscreteSchedule, Schedule
from ldm.tensor import expand_to, mean_flat
from ldm.types import Conditioning, LossTerms

__all__ = [
    "bits_per_dim",
    "posterior_coefficients",
    "prior_bits_per_dim",
    "published_buffers",
    "q_posterior",
]

Number = TypeVar("Number", float, Tensor)

LOG_2 = float(np.log(2.0))


def posterior_coefficients(
    alpha_t: Number, sigma_t: Number, alpha_s: Number, sigma_s: Number
) -> tuple[Number, Number, Number, Number]:
    """Coefficients of q(x_s | x_t, x0) for s < t, of numbers or tensors alike.

    Returns the weight of x_t and of x0 in the mean, the variance, and the variance of the forward
    step q(x_t | x_s) (beta of DDPM). With r = SNR(t) / SNR(s), variance = sigma_s^2 (1 - r).
    """
    ratio = (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2
    of_x_t = alpha_t * sigma_s**2 / (alpha_s * sigma_t**2)
    return of_x_t, alpha_s * (1 - ratio), sigma_s**2 * (1 - ratio), sigma_t**2 * (1 - ratio)


def q_posterior(
    schedule: Schedule, x_t: Tensor, x0: Tensor, *, t: Tensor, s: Tensor, v: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Posterior q(x_s | x_t, x_0) of a Gaussian process, s < t.

    Eq. (7) of DDPM (arXiv:2006.11239), written with signal-to-noise ratios so that it holds for
    any schedule.

    x_t, x0: (B, C, H, W).  t, s: (B,) times of the schedule.
    v: mixes the posterior's variance (0) with that of the forward step (1), as the published
    v_posterior does.
    Returns mean (B, C, H, W) and variance (B,), the latter in squared data units.
    """
    alpha_t, sigma_t = schedule.coefficients(t)
    alpha_s, sigma_s = schedule.coefficients(s)
    of_x_t, of_x0, small, large = posterior_coefficients(alpha_t, sigma_t, alpha_s, sigma_s)
    mean = expand_to(of_x_t, x_t) * x_t + expand_to(of_x0, x0) * x0
    return mean, (1 - v) * small + v * large


def prior_bits_per_dim(schedule: Schedule, x0: Tensor) -> Tensor:
    """KL(q(x_T | x0) || N(0, prior_std^2)) in bits per dimension.  x0: (B, C, H, W).  Returns (B,).

    Small when sampling from pure noise starts where training ends.
    """
    (alpha,), (sigma,) = schedule.exact(np.array([schedule.t_max]))
    variance = (sigma / schedule.prior_std) ** 2
    kl = ((alpha / schedule.prior_std * x0) ** 2 + (variance - 1 - np.log(variance))) / 2
    return mean_flat(kl) / LOG_2


@torch.no_grad()
def bits_per_dim(
    denoiser: Denoiser,
    schedule: DiscreteSchedule,
    x0: Tensor,
    *,
    draws: Draws,
    cond: Conditioning | None = None,
) -> LossTerms:
    """Upper bound on -log2 p(x0) per dimension, from one evaluation at each of the T times.

    total = prior + diffusion + reconstruction, eq. (5) of DDPM (arXiv:2006.11239) with the variance
    of the posterior. The data are treated as continuous: reconstruction is the differential
    -log2 N(x0; x0_hat(x_0), (sigma_0 / alpha_0)^2), so a bound may be negative, and latents have
    their own units.

    x0: (B, C, H, W).  Returns terms (B,) in bits per dimension, one sample of each.
    """
    alpha, sigma = schedule.exact(np.arange(float(schedule.num_timesteps)))
    snr = (alpha / sigma) ** 2
    diffusion = torch.zeros(len(x0), dtype=x0.dtype, device=x0.device)
    for time in range(schedule.num_timesteps - 1, -1, -1):
        t = torch.full((len(x0),), time, device=x0.device)
        eps = normal_like(draws, x0, f"bound {time}")
        x_t = float(alpha[time]) * x0 + float(sigma[time]) * eps
        error = mean_flat((denoiser(x_t, t, cond).x0 - x0) ** 2)
        if time:
            diffusion += error * ((snr[time - 1] - snr[time]) / 2)
    reconstruction = (error * snr[0] + np.log(2 * np.pi / snr[0])) / 2
    parts = {
        "prior": prior_bits_per_dim(schedule, x0),
        "diffusion": diffusion / LOG_2,
        "reconstruction": reconstruction / LOG_2,
    }
    return LossTerms(total=torch.stack(list(parts.values())).sum(dim=0), parts=parts)


def published_buffers(schedule: DiscreteSchedule, v_posterior: float = 0.0) -> dict[str, Tensor]:
    """The twelve tables that the 2022 release saves in its checkpoints: name -> (T,) float32.

    To compare with a checkpoint; nothing else needs them.
    """
    betas, abar = schedule.betas, schedule.alphas_cumprod
    abar_before = np.append(1.0, abar[:-1])
    variance = (1 - v_posterior) * betas * (1 - abar_before) / (1 - abar) + v_posterior * betas
    with np.errstate(divide="ignore"):  # infinite where a last step leaves no signal
        tables = {
            "betas": betas,
            "alphas_cumprod": abar,
            "alphas_cumprod_prev": abar_before,
            "sqrt_alphas_cumprod": np.sqrt(abar),
            "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - abar),
            "log_one_minus_alphas_cumprod": np.log(1 - abar),
            "sqrt_recip_alphas_cumprod": np.sqrt(1 / abar),
            "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / abar - 1),
            "posterior_variance": variance,
            # published: the variance at t = 0 is 0, its logarithm is cut
            "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
            "posterior_mean_coef1": betas * np.sqrt(abar_before) / (1 - abar),
            "posterior_mean_coef2": (1 - abar_before) * np.sqrt(1 - betas) / (1 - abar),
        }
    return {name: torch.from_numpy(table.astype(np.float32)) for name, table in tables.items()}
