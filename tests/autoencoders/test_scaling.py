"""Latent scale."""

import pytest
import torch

from ldm.autoencoders.scaling import LatentMoments, unit_std_scale


@pytest.fixture
def latents():
    draw = torch.randn(6, 4, 8, 5, generator=torch.Generator().manual_seed(0))
    return draw * torch.tensor([1.0, 2.0, 0.5, 3.0]).reshape(1, 4, 1, 1) + 0.7


def test_scale_is_the_inverse_unbiased_deviation_over_all_elements(latents):
    torch.testing.assert_close(unit_std_scale(latents), 1 / latents.std())


def test_scaled_latents_have_unit_deviation_per_channel(latents):
    scale = unit_std_scale(latents, per_channel=True)
    assert scale.shape == (1, 4, 1, 1)
    torch.testing.assert_close((latents * scale).std(dim=(0, 2, 3)), torch.ones(4))


def test_moments_do_not_depend_on_the_batches(latents):
    whole, parts = LatentMoments(), LatentMoments()
    whole.update(latents)
    for part in latents.split([1, 3, 2]):
        parts.update(part)
    for per_channel in (False, True):
        torch.testing.assert_close(
            parts.std(per_channel=per_channel),
            whole.std(per_channel=per_channel),
            rtol=1e-14,
            atol=0,
        )
        torch.testing.assert_close(
            parts.mean(per_channel=per_channel),
            latents.double().mean(dim=(0, 2, 3) if per_channel else None),
        )


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3])
@pytest.mark.parametrize("per_channel", [False, True])
def test_constant_latents_have_no_scale(value, per_channel):
    with pytest.raises(ValueError, match="do not vary"):
        unit_std_scale(torch.full((2, 3, 7, 7), value), per_channel=per_channel)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_have_no_scale(value):
    latents = torch.randn(2, 3, 4, 4)
    latents[1, 2, 0, 0] = value
    with pytest.raises(ValueError, match="not finite"):
        unit_std_scale(latents)


def test_a_small_deviation_beside_a_large_mean_is_measured():
    draw = torch.randn(
        4, 2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    measured = unit_std_scale(100 + 1e-3 * draw)
    torch.testing.assert_close(measured, (1 / (1e-3 * draw).std()).float(), rtol=1e-4, atol=0)


def test_moments_without_latents_are_an_error():
    with pytest.raises(ValueError, match="no latents"):
        LatentMoments().mean()


def test_skewness_of_a_two_point_distribution_is_in_closed_form():
    # P(1) = p, P(0) = 1 - p: skewness (1 - 2p) / sqrt(p (1 - p))
    z = torch.zeros(2, 3, 4, 8)
    z[0, 0].flatten()[:16] = 1  # p = 16 / 64 in channel 0
    z[:, 1, 0] = 1  # p = 16 / 64
    z[:, 2] = torch.tensor([-1.0, 1.0]).repeat(2, 4, 4)  # symmetric
    moments = LatentMoments()
    moments.update(3 * z - 5)
    expected = torch.tensor([0.5 / 0.1875**0.5] * 2 + [0.0], dtype=torch.float64)
    torch.testing.assert_close(moments.skew(per_channel=True), expected, rtol=1e-12, atol=1e-12)
    values = z.double().flatten()
    centred = values - values.mean()
    whole = centred.pow(3).mean() / centred.square().mean().pow(1.5)
    torch.testing.assert_close(moments.skew(), whole, rtol=1e-12, atol=0)
