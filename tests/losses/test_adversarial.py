"""The adversarial game: published values, the balance between both sides."""

import pytest
import torch

from ldm.losses.adversarial import (
    adopt_weight,
    bounded_weight,
    discriminator_loss,
    generator_loss,
    gradient_ratio,
    hinge_d_loss,
    vanilla_d_loss,
)
from ldm.losses.reconstruction import codebook_use
from tests.reference import Case


def test_game_equals_published_values():
    case = Case("g_losses", "gan_helpers")
    real, fake = case.input("logits_real"), case.input("logits_fake")
    weights = case.input("weights").abs()
    perplexity, used = codebook_use(case.input("predicted_indices"), 16)
    got = {
        "hinge_d_loss": hinge_d_loss(real, fake).mean(),
        "vanilla_d_loss": vanilla_d_loss(real, fake).mean(),
        "hinge_d_loss_exemplar_weights": hinge_d_loss(real, fake, weights).mean(),
        "perplexity_n16": perplexity,
        "cluster_use_n16": used,
        "adopt_weight": [adopt_weight(0.8, step, threshold=5) for step in (0, 4, 5, 6)],
    }
    assert got.keys() == case.want.keys()
    for key, value in got.items():
        case.check(key, value)


def test_hinge_loss_vanishes_for_a_discriminator_that_is_right_by_its_margin():
    logits = torch.full((2, 1, 3, 3), 1.0)
    assert torch.equal(hinge_d_loss(logits, -logits), torch.zeros(2))


def test_vanilla_loss_of_an_undecided_discriminator_is_log_two():
    logits = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(vanilla_d_loss(logits, logits), torch.full((2,), 2.0).log().double())


@pytest.mark.parametrize("loss", [hinge_d_loss, vanilla_d_loss])
def test_both_players_pull_the_logits_of_reconstructions_apart(loss):
    logits = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (of_discriminator,) = torch.autograd.grad(loss(logits.detach(), logits).sum(), logits)
    (of_generator,) = torch.autograd.grad(generator_loss(logits).sum(), logits)
    assert (of_discriminator >= 0).all()
    assert (of_generator < 0).all()


def adaptive_weight(nll, game):
    return bounded_weight(gradient_ratio(nll, game), 1e4)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_adaptive_weight_gives_both_gradients_one_size(scale):
    generator = torch.Generator().manual_seed(0)
    nll = torch.randn(3, 8, 3, 3, generator=generator)
    game = scale * torch.randn(3, 8, 3, 3, generator=generator)
    # 1e-4 in the denominator is the only difference
    torch.testing.assert_close(
        (adaptive_weight(nll, game) * game).norm(), nll.norm(), rtol=2e-4 / scale, atol=0
    )


def test_adaptive_weight_is_clamped_when_the_discriminator_has_no_opinion():
    weight = adaptive_weight(torch.ones(5, 5), torch.zeros(5, 5, requires_grad=True))
    assert weight == 1e4
    assert not weight.requires_grad


def test_adaptive_weight_is_float32_for_half_precision_gradients():
    assert (
        adaptive_weight(torch.ones(3).bfloat16(), torch.ones(3).bfloat16()).dtype == torch.float32
    )


def test_unknown_discriminator_loss_names_the_nearest():
    with pytest.raises(
        ValueError,
        match=r"^disc_loss: 'hinged'; expected one of hinge, vanilla, non-saturating; "
        r"did you mean 'hinge'",
    ):
        discriminator_loss("hinged")
