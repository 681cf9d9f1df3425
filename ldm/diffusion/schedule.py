"""Noise schedules: how much of x_t is signal and how much is noise.

Every schedule is one noise model, x_t = alpha(t) x0 + sigma(t) eps with eps ~ N(0, I), and
log_snr(t) = 2 log(alpha(t) / sigma(t)). Numbers are computed in float64 and cast once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ldm.spelling import require_known
from ldm.tensor import expand_to

__all__ = [
    "BETA_SCHEDULES",
    "DiscreteSchedule",
    "PublishedSchedule",
    "RectifiedFlow",
    "Schedule",
    "VarianceExploding",
    "rescale_to_zero_snr",
]

_MOST_TIMES = 1_000_000  # tables of that length have 8 MB each

Array = NDArray[np.float64]


class Schedule(nn.Module, ABC):
    """One noise model. Times run from `t_max`, nearly or only noise, down to `t_clean`, data.

    t_max: where sampling starts.  t_min: the least noisy time that is trained.
    t_clean: the time at which alpha is 1 and sigma is 0, exactly.
    num_timesteps: T of a schedule whose trained times are 0..T-1, None for a continuous one.
    prior_std: standard deviation of x at t_max for data of unit variance, the scale of x_T.
    """

    t_max: float
    t_min: float
    t_clean: float
    num_timesteps: int | None = None
    prior_std: float = 1.0

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise level (alpha, sigma), each (B,), at times t (B,)."""

    @abstractmethod
    def exact(self, times: Array) -> tuple[Array, Array]:
        """Both levels in float64, for samplers; same shape as times."""

    @abstractmethod
    def time_of_log_snr(self, log_snr: Array) -> Array:
        """Inverse of log_snr(t) in float64; outside the schedule, the nearest time of it."""

    @property
    def ends_in_pure_noise(self) -> bool:
        """Whether nothing is left of the data at t_max: alpha is 0, and eps says nothing of x0."""
        alpha, _ = self.exact(np.array([self.t_max]))
        return bool(alpha[0] == 0)

    def alpha(self, t: Tensor) -> Tensor:
        """Signal level at times t (B,): (B,)."""
        return self.coefficients(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level at times t (B,): (B,)."""
        return self.coefficients(t)[1]

    def log_snr(self, t: Tensor) -> Tensor:
        """Log of the signal-to-noise ratio alpha^2 / sigma^2 at times t (B,): (B,), in nats."""
        alpha, sigma = self.coefficients(t)
        return 2 * (alpha.log() - sigma.log())

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha x0 + sigma eps.  x0, eps: (B, C, H, W).  t: (B,)."""
        alpha, sigma = self.coefficients(t)
        return expand_to(alpha, x0) * x0 + expand_to(sigma, x0) * eps

    def net_time(self, t: Tensor) -> Tensor:
        """What the network is told of the time, (B,): about 0..1000, the scale of its embedding."""
        return t

    def net_scale(self, t: Tensor) -> Tensor | None:
        """What x_t is multiplied by before the network sees it, (B,); None for 1.

        Only schedules whose x_t does not keep unit variance need it (c_in of EDM,
        arXiv:2206.00364, for data of unit variance).
        """
        return None

    def tensor_of(self, times: Array, like: Tensor) -> Tensor:
        """Times as a tensor on the device of `like`; float64 if `like` is, float32 otherwise."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        return torch.from_numpy(times).to(like.device, dtype)


class DiscreteSchedule(Schedule):
    """A variance-preserving process in T steps: alpha_t^2 = prod_{s <= t} (1 - beta_s).

    Trained times are the integers 0..T-1, clean data is at -1. Between integers log alpha is
    interpolated linearly, as DPM-Solver (arXiv:2206.00927) does for discrete-time networks.

    betas: T numbers in [0, 1), the first above 0; the last may be 1, which leaves noise alone.
    Raises ValueError for anything else, NaN included.
    """

    t_min = 0.0
    t_clean = -1.0
    num_timesteps: int
    # rows are times 0..T-1 and then clean data, which is what index -1 finds
    _levels: Tensor  # (T + 1, 2): alpha, sigma
    _segments: Tensor  # (T + 1, 2): log alpha and its slope up to the next time

    def __init__(self, betas: Sequence[float] | Array) -> None:
        """Compute the tables from the variances added per step."""
        super().__init__()
        self.betas: Array = np.asarray(betas, dtype=np.float64)
        _check_betas(self.betas)
        self.num_timesteps = len(self.betas)
        self.t_max = float(self.num_timesteps - 1)
        with np.errstate(divide="ignore"):  # a last beta of 1 has log alpha -inf
            log_alpha = np.log1p(-self.betas).cumsum() / 2
        self._log_alpha: Array = np.append(0.0, log_alpha)
        self._set_tables(torch.device("cpu"), torch.float32)

    @property
    def alphas_cumprod(self) -> Array:
        """alpha^2 at times 0..T-1, (T,) in float64: the papers' alpha-bar."""
        return np.asarray(np.exp(2 * self._log_alpha[1:]))

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Both levels, (B,); t (B,) of integers is one look-up, in which -1 is clean data."""
        if not t.is_floating_point():
            alpha, sigma = self._levels[t].unbind(-1)
            return alpha, sigma
        before = t.floor()
        start, slope = self._segments[before.long()].unbind(-1)
        log_alpha = torch.addcmul(start, slope, t - before)
        sigma_squared = (log_alpha + log_alpha).expm1_().abs_()  # 1 - alpha^2, without cancellation
        return log_alpha.exp(), sigma_squared.sqrt_()

    def exact(self, times: Array) -> tuple[Array, Array]:
        """Both levels in float64 at times in [-1, T-1]."""
        log_alpha = np.interp(times, np.arange(-1, self.num_timesteps), self._log_alpha)
        return np.exp(log_alpha), np.sqrt(0 - np.expm1(2 * log_alpha))

    def time_of_log_snr(self, log_snr: Array) -> Array:
        """Time in [-1, T-1], float64, at which the interpolated schedule has this log SNR."""
        log_alpha = -np.logaddexp(0.0, -log_snr) / 2
        times = np.arange(-1.0, self.num_timesteps)
        return np.asarray(np.interp(-log_alpha, -self._log_alpha, times))

    def tensor_of(self, times: Array, like: Tensor) -> Tensor:
        """Times as a tensor: int64 when all are whole, so that look-ups are exact and cheap."""
        if np.array_equal(times, np.round(times)):
            return torch.from_numpy(times.astype(np.int64)).to(like.device)
        return super().tensor_of(times, like)

    def _set_tables(self, device: torch.device, dtype: torch.dtype) -> None:
        times = np.append(np.arange(self.num_timesteps), self.t_clean)
        levels = np.stack(self.exact(times), axis=1)
        # a finite slope: -inf times a fraction of 0 would be NaN
        slope = np.nan_to_num(np.append(np.diff(self._log_alpha), 0.0), neginf=-1e30)
        segments = np.roll(np.stack([self._log_alpha, slope], axis=1), -1, axis=0)
        for name, table in (("_levels", levels), ("_segments", segments)):
            self.register_buffer(name, torch.from_numpy(table).to(device, dtype), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow the module to a device, but look the numbers up anew.

        A cast to bfloat16 would round the first alphas to 1, and `to_empty` would leave garbage.
        """
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        wide = self._levels.dtype == torch.float64
        self._set_tables(self._levels.device, torch.float64 if wide else torch.float32)
        return self


def _linear(steps: int, start: float, end: float) -> Array:
    # published: "linear" is linear in sqrt(beta), elsewhere called scaled-linear
    return np.square(np.linspace(start**0.5, end**0.5, steps))


def _sqrt_linear(steps: int, start: float, end: float) -> Array:
    # published: "sqrt_linear" is the schedule that is linear in beta, as in DDPM
    return np.linspace(start, end, steps)


def _sqrt(steps: int, start: float, end: float) -> Array:
    return np.sqrt(np.linspace(start, end, steps))


def _cosine(steps: int, offset: float) -> Array:
    """Improved DDPM (arXiv:2102.09672), eq. (17): alpha-bar is a squared cosine."""
    times = np.arange(steps + 1) / steps
    alpha_bar = np.cos((times + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.asarray(np.clip(1 - alpha_bar[1:] / alpha_bar[:-1], 0, 0.999))


# name -> betas (T,) of (T, linear_start, linear_end); "cosine" has its own parameter
BETA_SCHEDULES: dict[str, Callable[[int, float, float], Array]] = {
    "linear": _linear,
    "sqrt_linear": _sqrt_linear,
    "sqrt": _sqrt,
}


class PublishedSchedule(DiscreteSchedule):
    """The discrete schedules of the 2022 release, under their published parameters.

    timesteps: T.  beta_schedule: "linear" (in sqrt(beta)), "sqrt_linear" (in beta), "sqrt" or
    "cosine".  linear_start, linear_end: beta at 0 and T-1, not used by "cosine".
    cosine_s: offset of "cosine".  given_betas: (T,) betas that override all of these.
    zero_terminal_snr: rescale so that x at T-1 is noise alone (arXiv:2305.08891).
    """

    def __init__(
        self,
        timesteps: int = 1000,
        beta_schedule: str = "linear",
        *,
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
        given_betas: Sequence[float] | Array | None = None,
        zero_terminal_snr: bool = False,
    ) -> None:
        """Compute the betas; ValueError names the nearest schedule when one is misspelt."""
        if given_betas is not None:
            betas = np.asarray(given_betas, dtype=np.float64)
        elif beta_schedule == "cosine":
            betas = _cosine(_positive(timesteps), cosine_s)
        else:
            require_known("beta_schedule", beta_schedule, [*BETA_SCHEDULES, "cosine"])
            betas = BETA_SCHEDULES[beta_schedule](_positive(timesteps), linear_start, linear_end)
        super().__init__(rescale_to_zero_snr(betas) if zero_terminal_snr else betas)


class RectifiedFlow(Schedule):
    """Straight paths: alpha = 1 - t, sigma = t, t in [0, 1] (arXiv:2209.03003)."""

    t_max = 1.0
    t_min = 0.0
    t_clean = 0.0

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """1 - t and t, each (B,)."""
        return 1 - t, t

    def exact(self, times: Array) -> tuple[Array, Array]:
        """1 - t and t."""
        return 1 - times, times

    def time_of_log_snr(self, log_snr: Array) -> Array:
        """The time 1 / (1 + sqrt(SNR))."""
        return np.asarray(1 / (1 + np.exp(log_snr / 2)))

    def net_time(self, t: Tensor) -> Tensor:
        """1000 t: the range that the sinusoidal embedding was made for."""
        return 1000 * t


class VarianceExploding(Schedule):
    """Data plus noise that is never scaled down: alpha = 1, sigma = t (EDM, arXiv:2206.00364).

    sigma_min, sigma_max: trained noise levels, in units of the data.
    """

    t_clean = 0.0

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        """Set the range of noise levels."""
        super().__init__()
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"expected 0 < sigma_min < sigma_max, got {sigma_min}, {sigma_max}")
        self.t_min, self.t_max = sigma_min, sigma_max
        self.prior_std = (1 + sigma_max**2) ** 0.5

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """1 and t, each (B,)."""
        return torch.ones_like(t), t

    def exact(self, times: Array) -> tuple[Array, Array]:
        """1 and t."""
        return np.ones_like(times), times

    def time_of_log_snr(self, log_snr: Array) -> Array:
        """The time 1 / sqrt(SNR), at most sigma_max."""
        return np.clip(np.exp(-log_snr / 2), 0, self.t_max)

    def net_time(self, t: Tensor) -> Tensor:
        """1000 log(sigma) / 4: EDM's noise condition on the scale of the other schedules."""
        return 250 * t.log()

    def net_scale(self, t: Tensor) -> Tensor | None:
        """1 / sqrt(1 + sigma^2), (B,)."""
        return (1 + t**2).rsqrt()


def rescale_to_zero_snr(betas: Array) -> Array:
    """Betas (T,) shifted and scaled in sqrt(alpha-bar) so that the last step leaves no signal.

    Algorithm 1 of arXiv:2305.08891; the first step is unchanged.
    """
    alpha = np.sqrt(np.cumprod(1 - betas))
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    return np.asarray(1 - (alpha / np.append(1.0, alpha[:-1])) ** 2)


def _positive(timesteps: int) -> int:
    if not 1 <= timesteps <= _MOST_TIMES:
        raise ValueError(f"timesteps is {timesteps}, expected 1 to {_MOST_TIMES}")
    return timesteps


def _check_betas(betas: Array) -> None:
    if betas.ndim != 1 or len(betas) == 0:
        raise ValueError(f"expected betas of shape (T,), got {betas.shape}")
    bad = ~((betas >= 0) & (betas < 1))  # written so that NaN is bad
    bad[0] |= betas[0] == 0  # without noise at t = 0 its signal-to-noise ratio is infinite
    bad[-1] &= betas[-1] != 1
    if bad.any():
        first = int(bad.argmax())
        expected = "above 0 and below 1" if first == 0 else "at least 0 and below 1"
        raise ValueError(f"beta at t = {first} is {betas[first]}, expected {expected}")
