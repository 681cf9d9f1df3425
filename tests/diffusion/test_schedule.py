"""Noise schedules: identities in float64, the published tables, robustness of the module."""

import copy

import numpy as np
import pytest
import torch

from ldm.diffusion.posterior import published_buffers
from ldm.diffusion.schedule import (
    DiscreteSchedule,
    PublishedSchedule,
    RectifiedFlow,
    VarianceExploding,
    rescale_to_zero_snr,
)
from ldm.diffusion.weighting import Elbo, PublishedX0Elbo
from tests.reference import Case, cases
from tests.reference_models import schedule_of

SCHEDULES = {
    "linear": PublishedSchedule(),
    "cosine": PublishedSchedule(200, "cosine"),
    "sqrt_linear": PublishedSchedule(200, "sqrt_linear"),
    "sqrt": PublishedSchedule(200, "sqrt"),
    "zero_terminal": PublishedSchedule(100, zero_terminal_snr=True),
    "one step": DiscreteSchedule([0.3]),
    "flow": RectifiedFlow(),
    "edm": VarianceExploding(),
}
DISCRETE = [name for name, s in SCHEDULES.items() if s.num_timesteps]


def times_of(schedule):
    """Trained times, float64, rising."""
    if schedule.num_timesteps:
        return np.arange(float(schedule.num_timesteps))
    return np.linspace(schedule.t_min, schedule.t_max, 1001)[1:]


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    return SCHEDULES[request.param]


def test_alpha_and_sigma_preserve_variance(schedule):
    alpha, sigma = schedule.exact(times_of(schedule))
    if isinstance(schedule, VarianceExploding):
        np.testing.assert_array_equal(alpha, 1)
    elif isinstance(schedule, RectifiedFlow):
        np.testing.assert_array_equal(alpha + sigma, 1)
    else:
        np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-14)


def test_log_snr_falls_strictly(schedule):
    alpha, sigma = schedule.exact(times_of(schedule))
    with np.errstate(divide="ignore"):  # the last time may be pure noise
        assert (np.diff(np.log(alpha) - np.log(sigma)) < 0).all()


def test_clean_time_is_exactly_data(schedule):
    alpha, sigma = schedule.exact(np.array([schedule.t_clean]))
    assert (alpha[0], sigma[0]) == (1, 0)
    t = schedule.tensor_of(np.array([schedule.t_clean]), torch.zeros(1))
    for times in (t, t.double()):
        assert [level.item() for level in schedule.coefficients(times)] == [1, 0]
    x0 = torch.randn(1, 3, 2, 2)
    assert torch.equal(schedule.noised(x0, torch.randn_like(x0), t), x0)


def test_tensors_hold_the_exact_numbers_rounded_once(schedule):
    times = times_of(schedule)
    alpha, sigma = schedule.exact(times)
    got = schedule.coefficients(schedule.tensor_of(times, torch.zeros(1)))
    for level, want in zip(got, (alpha, sigma), strict=True):
        # continuous times are rounded to float32 before they are used
        rtol = 1e-7 if schedule.num_timesteps else 2e-4
        np.testing.assert_allclose(level.numpy(), want, rtol=rtol, atol=1e-7)


def test_double_precision_gives_float64_tables(schedule):
    wide = copy.deepcopy(schedule).double()
    times = times_of(schedule)
    t = schedule.tensor_of(times, torch.zeros(1, dtype=torch.float64))
    for level, want in zip(wide.coefficients(t), schedule.exact(times), strict=True):
        np.testing.assert_allclose(level.double().numpy(), want, rtol=1e-14)


def test_log_snr_method_is_twice_the_log_of_the_ratio(schedule):
    wide = copy.deepcopy(schedule).double()
    times = times_of(schedule)[:-1]
    alpha, sigma = schedule.exact(times)
    t = wide.tensor_of(times, torch.zeros(1, dtype=torch.float64))
    np.testing.assert_allclose(wide.log_snr(t), 2 * np.log(alpha / sigma), rtol=1e-11, atol=1e-13)
    assert torch.equal(wide.alpha(t), wide.coefficients(t)[0])
    assert torch.equal(wide.sigma(t), wide.coefficients(t)[1])


def test_time_of_log_snr_inverts_the_schedule(schedule):
    times = times_of(schedule)[:-1]
    alpha, sigma = schedule.exact(times)
    back = schedule.time_of_log_snr(2 * np.log(alpha / sigma))
    # near t = 0 a small sigma is known to about 1e-16 / sigma^2
    np.testing.assert_allclose(back, times, rtol=1e-9, atol=1e-9)


def test_state_dict_stays_empty(schedule):
    assert not schedule.state_dict()


def test_net_input_has_unit_variance_for_unit_data(schedule):
    times = times_of(schedule)
    alpha, sigma = schedule.exact(times)
    scale = schedule.net_scale(torch.from_numpy(times))
    variance = (alpha**2 + sigma**2) * (1 if scale is None else scale.numpy() ** 2)
    # straight paths dip to 1/2 in the middle, which is their definition
    assert variance.min() >= 0.5 - 1e-12
    assert variance.max() <= 1 + 1e-12


def test_net_time_spans_the_range_of_the_embedding(schedule):
    times = schedule.tensor_of(times_of(schedule), torch.zeros(1)).float()
    spoken = schedule.net_time(times)
    assert spoken.diff().gt(0).all()
    assert spoken.abs().max() <= 2000


@pytest.mark.parametrize("name", DISCRETE)
def test_fractional_times_interpolate_log_alpha(name):
    schedule = copy.deepcopy(SCHEDULES[name]).double()
    times = np.linspace(-1, schedule.t_max, 999)[:-1]  # -1..0 is the way to clean data
    if name == "zero_terminal":
        times = times[times <= schedule.t_max - 1]
    alpha, sigma = schedule.coefficients(torch.from_numpy(times))
    whole = np.arange(-1, schedule.num_timesteps)
    table = np.append(0, np.cumsum(np.log1p(-np.minimum(schedule.betas, 1 - 1e-16))) / 2)
    np.testing.assert_allclose(alpha, np.exp(np.interp(times, whole, table)), rtol=1e-12)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-12)
    exact = schedule.exact(times)
    np.testing.assert_allclose(np.stack([alpha, sigma]), np.stack(exact), rtol=1e-9)


def test_zero_terminal_snr_is_really_zero_and_keeps_the_first_step():
    plain, rescaled = PublishedSchedule(), PublishedSchedule(zero_terminal_snr=True)
    alpha, sigma = rescaled.exact(np.array([0.0, 999.0]))
    assert (alpha[1], sigma[1]) == (0, 1)
    np.testing.assert_allclose(alpha[0], plain.exact(np.array([0.0]))[0][0], rtol=1e-14)
    t = torch.tensor([999])
    assert rescaled.alpha(t).item() == 0
    assert rescaled.alpha(t.float()).item() == 0
    assert rescaled.alpha(torch.tensor([998.5])).item() == 0
    assert rescaled.alpha(torch.tensor([998.0])).item() > 0
    assert torch.isfinite(rescaled.log_snr(t - 1)).all()


def test_zero_terminal_snr_is_idempotent():
    once = rescale_to_zero_snr(PublishedSchedule().betas)
    np.testing.assert_allclose(rescale_to_zero_snr(once), once, atol=1e-15)


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16])
def test_a_cast_of_the_module_leaves_the_tables_alone(cast):
    schedule = PublishedSchedule()
    t = torch.arange(1000)
    before = schedule.coefficients(t)
    after = schedule.to(cast).coefficients(t)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_tables_are_on_the_cpu_and_right_when_built_on_the_meta_device():
    with torch.device("meta"):
        schedule = PublishedSchedule()
    assert torch.equal(
        schedule.alpha(torch.tensor([5])), PublishedSchedule().alpha(torch.tensor([5]))
    )


def test_tables_survive_to_empty():
    with torch.device("meta"):
        model = torch.nn.ModuleDict({"schedule": PublishedSchedule(), "net": torch.nn.Linear(2, 2)})
    model.to_empty(device="cpu")
    t = torch.arange(1000)
    assert torch.equal(model["schedule"].sigma(t), PublishedSchedule().sigma(t))


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([0.1, np.nan], "t = 1 is nan"),
        ([0.1, 1.0, 0.1], "t = 1 is 1.0"),
        ([0.1, -0.1], "t = 1 is -0.1"),
        ([0.0, 0.1], "t = 0 is 0.0, expected above 0"),
        ([0.1, 1.5], "t = 1 is 1.5"),
        ([], "shape"),
        ([[0.1]], "shape"),
    ],
)
def test_impossible_betas_are_refused_with_their_time(betas, message):
    with pytest.raises(ValueError, match=message):
        PublishedSchedule(given_betas=betas)


@pytest.mark.parametrize(
    ("wrong", "right"), [("lineer", "linear"), ("sqrt_lin", "sqrt_linear"), ("cos", "cosine")]
)
def test_a_misspelt_schedule_names_the_nearest(wrong, right):
    with pytest.raises(ValueError, match=f"did you mean '{right}'"):
        PublishedSchedule(beta_schedule=wrong)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_no_timesteps_are_refused(name):
    with pytest.raises(ValueError, match="timesteps is 0"):
        PublishedSchedule(0, name)


@pytest.mark.parametrize("limits", [(0.0, 80.0), (2.0, 1.0)])
def test_impossible_noise_levels_are_refused(limits):
    with pytest.raises(ValueError, match="sigma_min"):
        VarianceExploding(*limits)


def tolerance_of(case):
    # the reference computes its cosine with another order of operations, ill-conditioned at the end
    return 1e-5 if case.params["beta_schedule"] in ("cosine", "sqrt") else 1e-6


@pytest.mark.parametrize("name", cases("d_schedule"))
def test_schedule_matches_the_published_tables(name):
    case = Case("d_schedule", name)
    schedule = schedule_of(case.params)
    np.testing.assert_allclose(schedule.betas, case.want.pop("betas_float64"), rtol=1e-11)
    weights = {kind: case.want.pop(f"lvlb_weights_{kind}") for kind in ("eps", "x0")}
    buffers = published_buffers(schedule, case.params["v_posterior"])
    assert set(buffers) == set(case.want)
    for key, want in case.want.items():
        rtol = tolerance_of(case)
        np.testing.assert_allclose(buffers[key], want, rtol=rtol, atol=1e-7, err_msg=key)

    t = torch.arange(schedule.num_timesteps)
    # the reference rounds abar of the previous step to float32 before it takes 1 - abar
    cancelled = 1 - np.append(1.0, schedule.alphas_cumprod[:-1])
    cancelled[0] = cancelled[1]  # entry 0 is a copy of entry 1
    allowed = tolerance_of(case) + 2.0**-24 / cancelled
    elbo = Elbo(case.params["v_posterior"])(copy.deepcopy(schedule).double(), t, "eps").numpy()
    assert (np.abs(elbo / weights["eps"] - 1) < allowed).all()
    published = PublishedX0Elbo()(schedule, t, "x0")
    np.testing.assert_allclose(published, weights["x0"], rtol=tolerance_of(case))
