"""Loss weights: equal objectives whatever is predicted, and each paper's own formula."""

import itertools

import pytest
import torch

from ldm.diffusion.parameterization import PARAMETERIZATIONS, from_prediction, to_prediction
from ldm.diffusion.schedule import PublishedSchedule, RectifiedFlow, VarianceExploding
from ldm.diffusion.weighting import EDM, P2, Elbo, MinSNR, PublishedX0Elbo, Uniform

T = torch.arange(1000)
# at t = 0 the bound has no weight: a copy of t = 1 is not the same objective for all predictions
LATER = slice(1, None)
SCHEDULES = {
    "linear": PublishedSchedule().double(),
    "celeba": PublishedSchedule(linear_start=0.0015, linear_end=0.0195).double(),
    "cosine": PublishedSchedule(1000, "cosine").double(),
}
WEIGHTINGS = [Uniform(), Elbo(), Elbo(0.5), MinSNR(), P2(), EDM()]


def snr_of(schedule):
    alpha, sigma = schedule.coefficients(T)
    return (alpha / sigma) ** 2


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    return SCHEDULES[request.param]


@pytest.mark.parametrize("weighting", [w for w in WEIGHTINGS if not isinstance(w, Uniform)])
def test_weight_on_eps_is_the_weight_on_x0_over_snr(weighting, schedule):
    on_x0, on_eps = weighting(schedule, T, "x0"), weighting(schedule, T, "eps")
    converted = on_x0 / snr_of(schedule)
    torch.testing.assert_close(on_eps[LATER], converted[LATER], rtol=1e-12, atol=0)


@pytest.mark.parametrize("weighting", [w for w in WEIGHTINGS if not isinstance(w, Uniform)])
@pytest.mark.parametrize("pair", list(itertools.combinations(PARAMETERIZATIONS, 2)), ids="-".join)
def test_weighted_loss_is_the_same_whatever_is_predicted(weighting, pair, schedule):
    alpha, sigma = schedule.coefficients(T)
    x_t, out, want = torch.randn(3, len(T), 1, 2, 2, dtype=torch.float64)
    losses = []
    for name in pair:
        outputs = [
            from_prediction(name, to_prediction("v", o, x_t, alpha, sigma), alpha, sigma)
            for o in (out, want)
        ]
        error = (outputs[0] - outputs[1]).square().flatten(1).mean(1)
        losses.append((weighting(schedule, T, name) * error)[LATER])
    torch.testing.assert_close(*losses, rtol=1e-9, atol=0)


def test_elbo_weight_is_half_the_loss_of_snr_per_step(schedule):
    snr = snr_of(schedule)
    weight = Elbo()(schedule, T, "x0")
    torch.testing.assert_close(weight[1:], (snr[:-1] - snr[1:]) / 2, rtol=1e-10, atol=0)
    assert weight[0] == weight[1]


@pytest.mark.parametrize("v", [0.0, 0.3, 1.0])
def test_elbo_weight_is_the_divergence_of_two_posteriors(v, schedule):
    """KL of two Gaussians whose means differ by the x0 coefficient of the posterior."""
    betas = torch.from_numpy(schedule.betas)
    abar = torch.from_numpy(schedule.alphas_cumprod)
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    variance = betas * ((1 - v) * (1 - before) / (1 - abar) + v)
    coefficient = betas * before.sqrt() / (1 - abar)
    want = coefficient**2 / (2 * variance)
    got = Elbo(v)(schedule, T, "x0")
    torch.testing.assert_close(got[1:], want[1:], rtol=1e-9, atol=0)


def test_the_published_x0_weight_is_not_that_of_the_bound(schedule):
    ratio = Elbo()(schedule, T, "x0") / PublishedX0Elbo()(schedule, T, "x0")
    # were it a matter of scale, the ratio would be the same at every time
    assert ratio.max() / ratio.min() > 900


@pytest.mark.parametrize("weighting", [*WEIGHTINGS, PublishedX0Elbo()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_weight_is_finite_and_positive(weighting, dtype, schedule):
    in_type = PublishedSchedule(given_betas=schedule.betas).to(dtype)
    for name in PARAMETERIZATIONS:
        if name == "x0" or not isinstance(weighting, PublishedX0Elbo):
            weight = weighting(in_type, T, name)
            assert weight.isfinite().all()
            assert (weight > 0).all()
            assert weight.shape == T.shape


def test_float32_weights_stay_close_to_the_exact_ones(schedule):
    single = PublishedSchedule(given_betas=schedule.betas)
    # 1 - SNR(t) / SNR(t - 1) magnifies the round-off of alpha and sigma, 1e-7, by up to 1e3
    torch.testing.assert_close(
        Elbo()(single, T, "eps").double(), Elbo()(schedule, T, "eps"), rtol=2e-4, atol=0
    )


def test_min_snr_is_the_papers(schedule):
    snr = snr_of(schedule)
    clamped = snr.clamp(max=5.0)
    torch.testing.assert_close(MinSNR(5.0)(schedule, T, "x0"), clamped, rtol=1e-12, atol=0)
    torch.testing.assert_close(MinSNR(5.0)(schedule, T, "eps"), clamped / snr, rtol=1e-12, atol=0)
    v = clamped / (snr + 1)
    torch.testing.assert_close(MinSNR(5.0)(schedule, T, "v"), v, rtol=1e-12, atol=0)


def test_p2_is_the_papers(schedule):
    want = 1 / (1 + snr_of(schedule)) ** 0.5
    torch.testing.assert_close(P2(gamma=0.5)(schedule, T, "eps"), want, rtol=1e-12, atol=0)


def test_edm_is_the_papers():
    sigma = torch.tensor([0.002, 0.5, 1.0, 80.0], dtype=torch.float64)
    want = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    got = EDM(sigma_data=0.5)(VarianceExploding(), sigma, "x0")
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_uniform_is_one_on_whatever_is_predicted(name):
    assert torch.equal(Uniform()(SCHEDULES["linear"], T, name), torch.ones(1000))


@pytest.mark.parametrize(
    ("schedule", "t"),
    [
        (RectifiedFlow(), torch.tensor([0.5])),
        (PublishedSchedule(), torch.tensor([0.5])),
        (PublishedSchedule(given_betas=[0.5]), torch.tensor([0])),
    ],
)
def test_elbo_in_steps_needs_steps(schedule, t):
    with pytest.raises(ValueError, match="integer times of at least 2 steps"):
        Elbo()(schedule, t, "v")


def test_the_published_x0_weight_refuses_other_predictions():
    with pytest.raises(ValueError, match="use Elbo"):
        PublishedX0Elbo()(SCHEDULES["linear"], T, "eps")


@pytest.mark.parametrize("v", [-0.1, 1.1])
def test_elbo_refuses_a_variance_outside_the_two_published_ones(v):
    with pytest.raises(ValueError, match=f"v_posterior is {v}, expected 0 to 1"):
        Elbo(v)
