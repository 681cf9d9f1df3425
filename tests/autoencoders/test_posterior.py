"""The Gaussian posterior against published values and torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ldm.autoencoders.posterior import DiagonalGaussian, normal_kl
from tests.reference import Case


@pytest.mark.parametrize(("name", "factor"), [("gaussian", 1.0), ("gaussian_clamped", 30.0)])
def test_posterior_equals_published_values(name, factor):
    case = Case("h_ema_lr_dist", name)
    moments = case.input("moments") * factor
    posterior = DiagonalGaussian(moments)
    other, third = (DiagonalGaussian(case.input(f"{n}_moments")) for n in ("other", "third"))
    deterministic = DiagonalGaussian(case.input("other_moments"), deterministic=True)
    noise = case.input("noise")
    got = {
        "mean": posterior.mean,
        "logvar": posterior.logvar,
        "std": posterior.std,
        "var": posterior.var,
        "mode": posterior.mode(),
        "sample": posterior.sample(noise),
        "kl": posterior.kl(),
        "kl_other": other.kl(third),
        "nll": other.nll(case.input("y")),
        "nll_dims12": other.nll(case.input("y"), dims=(1, 2)),
        "det_sample": deterministic.sample(noise),
        "det_kl": deterministic.kl(),
        "det_std": deterministic.std,
        "normal_kl": normal_kl(other.mean, other.logvar, posterior.mean.clamp(-2, 2), 0.3),
    }
    assert got.keys() == case.want.keys()
    for key, value in got.items():
        case.check(key, value)


@pytest.fixture
def moments():
    return torch.randn(3, 8, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def normal(posterior):
    return Normal(posterior.mean.double(), posterior.std.double())


def test_kl_equals_torch_distributions(moments):
    p, q = DiagonalGaussian(moments), DiagonalGaussian(moments.flip(0))
    for other, reference in [(None, Normal(0.0, 1.0)), (q, normal(q))]:
        expected = kl_divergence(normal(p), reference).sum(dim=(1, 2, 3))
        # statistics are float32: sums of 80 terms
        torch.testing.assert_close(p.kl(other).double(), expected, rtol=1e-5, atol=1e-5)


def test_kl_of_equal_posteriors_is_zero(moments):
    posterior = DiagonalGaussian(moments)
    assert posterior.kl(DiagonalGaussian(moments)).abs().max() < 1e-5


def test_nll_equals_torch_distributions(moments):
    posterior = DiagonalGaussian(moments)
    at = moments[:, :4].float()
    expected = -normal(posterior).log_prob(at.double()).sum(dim=(1, 2, 3))
    torch.testing.assert_close(posterior.nll(at).double(), expected, rtol=1e-5, atol=1e-5)


def test_samples_have_the_posterior_mean_and_deviation():
    posterior = DiagonalGaussian(
        torch.cat(
            [torch.full((1, 1, 200, 200), 0.5), torch.full((1, 1, 200, 200), math.log(4.0))], 1
        )
    )
    z = posterior.sample(generator=torch.Generator().manual_seed(1))
    assert abs(z.mean() - 0.5) < 4 * 2 / 200  # four standard errors of 40 000 draws
    assert abs(z.std() - 2.0) < 4 * 2 / math.sqrt(2 * 40_000)


def test_statistics_are_float32_for_half_precision_moments():
    posterior = DiagonalGaussian(torch.ones(2, 4, 2, 2, dtype=torch.bfloat16))
    assert {t.dtype for t in (posterior.mean, posterior.std, posterior.kl())} == {torch.float32}


def test_posterior_rejects_an_odd_number_of_channels():
    with pytest.raises(ValueError, match="3 channels"):
        DiagonalGaussian(torch.zeros(1, 3, 2, 2))
