"""Frechet distance and classifier score in closed form."""

import math

import pytest
import torch

from ldm.evaluation.frechet import FeatureMoments, classifier_score, frechet_distance


def rotation(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator)).Q


def test_distance_of_gaussians_that_commute_is_in_closed_form():
    # covariances with the same axes: |m1 - m2|^2 + sum of (s1 - s2)^2
    axes = rotation(5)
    s1, s2 = torch.tensor([[1.0, 2, 3, 4, 5], [2.0, 2, 6, 1, 1]], dtype=torch.float64)
    m1, m2 = torch.zeros(5), torch.arange(5.0)
    cov1, cov2 = (axes * s.square() @ axes.T for s in (s1, s2))
    expected = 30 + 1 + 0 + 9 + 9 + 16
    assert frechet_distance(m1, cov1, m2, cov2) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(m2, cov2, m1, cov1) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(m1, cov1, m1, cov1) == pytest.approx(0, abs=1e-12)


def test_covariances_may_be_singular():
    # fewer images than features; round-off of 1e-16 in an eigenvalue is 1e-8 in its root
    axes = rotation(4)
    s1, s2 = torch.tensor([[1.0, 0, 3, 0], [2.0, 0, 0, 5]], dtype=torch.float64)
    cov1, cov2 = (axes * s.square() @ axes.T for s in (s1, s2))
    assert frechet_distance(s1, cov1, s1, cov2) == pytest.approx(1 + 9 + 25, abs=1e-6)


def test_distance_of_two_gaussians_in_the_plane_that_do_not_commute():
    # of a 2 x 2 matrix M, tr M^(1/2) = (tr M + 2 det^(1/2) M)^(1/2)
    cov1 = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    cov2 = torch.tensor([[1.0, -0.5], [-0.5, 4.0]], dtype=torch.float64)
    product = cov1 @ cov2
    root = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = float(cov1.trace() + cov2.trace() - 2 * root)
    zero = torch.zeros(2)
    assert frechet_distance(zero, cov1, zero, cov2) == pytest.approx(expected, rel=1e-12)


def test_moments_do_not_depend_on_batches():
    features = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)) * 3 + 7
    moments = FeatureMoments()
    for part in features.split(7):
        moments.update(part)
    assert moments.count == 20
    torch.testing.assert_close(moments.mean(), features.double().mean(dim=0))
    torch.testing.assert_close(moments.covariance(), torch.cov(features.double().T))


def test_one_example_has_no_covariance():
    moments = FeatureMoments()
    with pytest.raises(ValueError, match="no features"):
        moments.mean()
    moments.update(torch.ones(1, 3))
    with pytest.raises(ValueError, match="two examples"):
        moments.covariance()


def test_score_counts_the_classes_that_are_told_apart():
    certain = torch.eye(4).repeat(10, 1) * 1000
    assert classifier_score(certain) == pytest.approx((4, 0))
    assert classifier_score(torch.zeros(40, 4)) == pytest.approx((1, 0))


def test_score_is_of_consecutive_parts():
    # one part of a single class (score 1) and one of two (score 2)
    logits = 1000 * torch.eye(2)[[0, 0, 0, 0, 0, 1, 0, 1]]
    assert classifier_score(logits, splits=2) == pytest.approx((1.5, 0.5))
    half = torch.tensor([[math.log(3.0), 0.0], [0.0, math.log(3.0)]])
    expected = math.exp(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert classifier_score(half, splits=1) == pytest.approx((expected, 0))
    with pytest.raises(ValueError, match="2 images for 3 parts"):
        classifier_score(half, splits=3)
