"""Every sampler with every schedule and everything that a network may predict."""

import pytest
import torch

from ldm.diffusion.draws import KeyedDraws
from ldm.diffusion.parameterization import PARAMETERIZATIONS, from_prediction, to_prediction
from ldm.diffusion.schedule import PublishedSchedule, RectifiedFlow, VarianceExploding
from ldm.samplers.plms import PLMS
from tests.gaussian import GaussianDenoiser
from tests.samplers.solvers import SOLVERS, name

SCHEDULES = {
    "published": PublishedSchedule(linear_start=0.0015, linear_end=0.0195).double(),
    "linear": PublishedSchedule(beta_schedule="sqrt_linear").double(),
    "cosine": PublishedSchedule(beta_schedule="cosine").double(),
    "zero terminal SNR": PublishedSchedule(zero_terminal_snr=True).double(),
    "flow": RectifiedFlow(),
    "exploding": VarianceExploding(),
}
X = torch.linspace(-1.5, 2, 8, dtype=torch.float64).reshape(2, 1, 2, 2)


class Predicting(GaussianDenoiser):
    """The ideal denoiser by way of what a network of this parameterization would return."""

    parameterization = "eps"

    def __call__(self, x_t, t, cond):
        levels = self.schedule.coefficients(t)
        out = from_prediction(self.parameterization, super().__call__(x_t, t, cond), *levels)
        return to_prediction(self.parameterization, out, x_t, *levels)


def sample(sampler, denoiser, steps):
    schedule = denoiser.schedule
    end = sampler.sample(
        denoiser, X * schedule.prior_std, schedule=schedule, steps=steps,
        draws=KeyedDraws(range(2), seed=0),
    )  # fmt: skip
    assert denoiser.evaluations == sampler.evaluations(steps)
    return end


NOT_REFUSED = [
    (sampler, kind)
    for sampler in SOLVERS
    for kind, schedule in SCHEDULES.items()
    if not (schedule.ends_in_pure_noise and isinstance(sampler, PLMS))
]


@pytest.mark.parametrize(("sampler", "kind"), NOT_REFUSED, ids=name)
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_what_is_predicted_makes_no_difference(sampler, kind, steps):
    schedule = SCHEDULES[kind]
    want = sample(sampler, GaussianDenoiser(schedule), steps)
    assert want.isfinite().all()
    for parameterization in PARAMETERIZATIONS:
        if parameterization == "eps" and schedule.ends_in_pure_noise:
            continue  # says nothing there: `NetDenoiser` refuses it
        denoiser = Predicting(schedule)
        denoiser.parameterization = parameterization
        # eps at a level of 80 or 1e4 loses as many digits of x0, and x0 as many of eps
        torch.testing.assert_close(sample(sampler, denoiser, steps), want, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("sampler", "kind"), NOT_REFUSED, ids=name)
def test_many_steps_stay_finite_and_near_the_data(sampler, kind):
    end = sample(sampler, GaussianDenoiser(SCHEDULES[kind]), 100)
    # 6 standard deviations of the data, 0.7 +- 0.5
    assert ((end - 0.7).abs() < 3).all()
