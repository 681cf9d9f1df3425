"""The rules of the game beyond the published ones."""

import math

import pytest
import torch

from ldm.diffusion.draws import KeyedDraws
from ldm.losses.autoencoder import LPIPSWithDiscriminator, VQLPIPSWithDiscriminator
from ldm.losses.discipline import r1_penalty

FAMILY = pytest.mark.parametrize("cls", [LPIPSWithDiscriminator, VQLPIPSWithDiscriminator])


def make(cls=LPIPSWithDiscriminator, **rules):
    arguments = {"disc_start": 0, "perceptual_weight": 0, "disc_ndf": 8, "disc_num_layers": 1}
    return cls(**arguments | rules)


def logits(real=0.0, fake=0.0):
    return [torch.full((2, 1, 3, 3), value) for value in (real, fake)]


@FAMILY
def test_non_saturating_loss_of_undecided_logits_is_log_two(cls):
    loss = make(cls, disc_loss="non-saturating")
    want = torch.full((2,), math.log(2))
    torch.testing.assert_close(loss.deception(logits()[1]), want)
    torch.testing.assert_close(loss.discrimination(*logits(), step=0).total, want)


def test_non_saturating_gradient_fades_when_the_discriminator_is_deceived():
    slopes = []
    for value in (-20.0, 0.0, 20.0):
        fake = torch.full((1, 1, 1, 1), value, requires_grad=True)
        make(disc_loss="non-saturating").deception(fake).sum().backward()
        slopes.append(fake.grad.item())
    assert slopes == pytest.approx([-1.0, -0.5, 0.0], abs=1e-8)


def test_published_losses_keep_their_generator():
    fake = torch.randn(2, 1, 3, 3)
    for name in ("hinge", "vanilla"):
        assert torch.equal(make(disc_loss=name).deception(fake), -fake.mean(dim=(1, 2, 3)))


@FAMILY
def test_generator_hears_of_the_game_after_the_warm_up(cls):
    loss = make(cls, disc_start=10, disc_warmup=5, disc_factor=0.5)
    steps = (9, 10, 14, 15)
    assert [loss.factor(step) for step in steps] == [0.0, 0.5, 0.5, 0.5]
    assert [loss.generator_factor(step) for step in steps] == [0.0, 0.0, 0.0, 0.5]


def test_warm_up_is_none_by_default():
    loss = make(disc_start=10)
    assert [loss.generator_factor(step) for step in (9, 10)] == [0.0, 1.0]


@pytest.mark.parametrize("maximum", [1e4, 3.0, 0.0])
def test_adaptive_weight_is_clamped_before_its_factor(maximum):
    loss = make(adaptive_weight_max=maximum, disc_weight=0.5)
    assert loss.balance(torch.ones(4), torch.zeros(4)) == 0.5 * maximum


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("side", [0, 1])
def test_gradient_that_is_not_finite_has_no_weight_and_is_counted(bad, side):
    loss, gradients = make(), [torch.ones(4), torch.ones(4)]
    gradients[side][1] = bad
    assert loss.balance(*gradients) == 0
    assert loss.num_unbalanced == 1
    assert loss.balance(torch.ones(4), torch.ones(4)) > 0
    assert loss.num_unbalanced == 1


def test_adaptive_weight_is_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        weight = make().balance(torch.full((3,), 300.7), torch.ones(3))
    assert weight.dtype == torch.float32
    assert weight == pytest.approx(300.7, rel=1e-4)  # bfloat16 has steps of 2


def test_fixed_balance_is_the_weight_alone():
    loss = make(adaptive=False, disc_weight=0.3)
    assert not loss.is_adaptive
    assert loss.fixed_balance(torch.zeros(2)) == pytest.approx(0.3)
    images, layer = torch.rand(2, 3, 16, 16), torch.ones((), requires_grad=True)
    terms = loss.objective(images, images * layer, torch.zeros(2), step=0, last_layer=layer)
    assert terms.parts["d_weight"].tolist() == pytest.approx([0.3] * 2)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_fixed_weight_is_none_where_the_gradient_is_not_finite(bad):
    loss = make(adaptive=False, disc_weight=0.3)
    assert loss.fixed_balance(torch.tensor([1.0, bad])) == 0
    assert loss.num_unbalanced == 1
    assert loss.fixed_balance(torch.ones(2)) > 0
    assert loss.num_unbalanced == 1


def test_r1_counts_now_and_then_and_as_often_as_it_was_left_out():
    loss = make(r1_weight=10.0, r1_every=4).eval()
    images = torch.rand(2, 3, 16, 16)
    real, fake = loss.judge(images), loss.judge(-images)
    terms = [loss.discipline(images, real, fake, step=step) for step in range(5)]
    assert ["r1" in each.parts for each in terms] == [True, False, False, False, True]
    want = r1_penalty(loss.discriminator, images).detach()
    torch.testing.assert_close(terms[0].parts["r1"], want)
    torch.testing.assert_close(terms[0].total.detach(), 10.0 / 2 * 4 * want)
    assert not terms[1].total.any()


def test_lecam_counts_by_its_weight():
    loss = make(lecam_weight=0.1, disc_factor=0.5)
    terms = loss.discipline(torch.zeros(2, 3, 16, 16), *logits(2.0, -1.0), step=3)
    torch.testing.assert_close(terms.parts["lecam"], torch.full((2,), 18.0))
    torch.testing.assert_close(terms.total, torch.full((2,), 0.5 * 0.1 * 18.0))


def test_state_has_lecam_only_with_a_weight():
    names = {"lecam.real", "lecam.fake", "lecam.mass"}
    assert make(lecam_weight=0.1).state_dict().keys() - make().state_dict().keys() == names
    assert "num_unbalanced" not in make().state_dict()


def test_images_and_reconstructions_are_augmented_alike():
    loss = make(disc_augment=["color", "translation", "cutout"]).eval()
    images = torch.rand(2, 3, 16, 16)
    numbers = loss.augmentation_numbers(KeyedDraws([1, 2], seed=0), images)
    one, other = (loss.judge(images, numbers=numbers) for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, loss.judge(images))


def test_published_rules_draw_nothing():
    assert make().augmentation_numbers(None, torch.zeros(1)) is None


def test_condition_is_not_augmented():
    with pytest.raises(ValueError, match=r"disc_augment: \['color'\]; a condition"):
        make(disc_augment=["color"], disc_conditional=True)


def test_unknown_rule_is_an_error():
    with pytest.raises(TypeError, match="r1_wait"):
        make(r1_wait=1.0)
