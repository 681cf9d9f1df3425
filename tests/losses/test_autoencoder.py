"""First-stage objectives: every published output, and how the pieces fit together."""

from functools import cache

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ldm.autoencoders.posterior import DiagonalGaussian
from ldm.config.signature import parameter_problems
from ldm.losses import autoencoder
from ldm.losses.autoencoder import LPIPSWithDiscriminator, VQLPIPSWithDiscriminator
from ldm.losses.perceptual import LPIPS
from tests.reference import Case, cases, fill, key_crc32, rule_weight

CASES = [name for name in cases("g_losses") if name.startswith(("klloss", "vqloss"))]


@cache
def rule_perceptual_network():
    """LPIPS with its rule weights, which take long to make: the same in every case."""
    network = fill(LPIPS(), prefix="perceptual_loss.")
    network.load_state_dict(network.state_dict())  # which is how weights are given
    return network


def published_loss(case):
    """The loss of a case with its rule weights."""
    cls = getattr(autoencoder, case.spec["constructor"]["target"].rsplit(".", 1)[1])
    loss = cls(**{**case.params, "perceptual_weight": 0.0})
    fill(loss)
    # published: the network is there even when it has no weight
    loss.perceptual_loss = rule_perceptual_network()
    loss.perceptual_weight = case.params.get("perceptual_weight", 1.0)
    assert key_crc32(loss) == case.spec["rule_filled"][0]["key_crc32"]
    return loss.train(case.spec["mode"].startswith("train"))


def optional_inputs(case):
    weights, codes = (
        case.spec["inputs"].get("weights"),
        case.spec["inputs"].get("predicted_indices"),
    )
    return {
        "weights": case.input("weights").abs() if weights else None,
        "codes": case.input("predicted_indices") if codes else None,
    }


@pytest.mark.parametrize("name", CASES)
def test_objective_equals_published_values(name):
    case = Case("g_losses", name)
    loss = published_loss(case)
    inputs, features = case.input("inputs"), case.input("feat")
    shape = (inputs.shape[1], features.shape[1], 3, 3)
    last = torch.from_numpy(rule_weight("last_layer.weight", shape)).requires_grad_()
    reconstructions = F.conv2d(features, last, padding=1)
    is_kl = isinstance(loss, LPIPSWithDiscriminator)
    cost = DiagonalGaussian(case.input("moments")).kl() if is_kl else case.input("codebook_loss")
    step = case.spec["global_step"]
    terms = loss.objective(
        inputs, reconstructions, cost, step=step, last_layer=last, **optional_inputs(case)
    )
    total = terms.total.mean()
    total.backward()
    split = "train" if loss.training else "val"
    got = {"gen_loss": total, "gen_grad_last_layer": last.grad}
    got |= {f"gen_log:{split}/{k}": v.mean() for k, v in terms.parts.items()}
    got[f"gen_log:{split}/total_loss"] = total
    if is_kl:
        got["gen_grad_logvar"] = loss.logvar.grad
    loss.zero_grad()
    logits = loss.judge(inputs), loss.judge(reconstructions.detach())
    terms = loss.discrimination(*logits, step=step)
    terms.total.mean().backward()
    got["disc_loss"] = terms.total.mean()
    got |= {f"disc_log:{split}/{k}": v.mean() for k, v in terms.parts.items()}
    parameters = dict(loss.named_parameters())
    got["disc_grad_norms"] = np.array(
        [float(parameters[k].grad.double().norm()) for k in case.spec["parameter_order"]]
    )
    for key in case.want:
        case.check(key, got[key], "gradients" if "grad" in key else None)


def kl_loss(**changes):
    arguments = {"disc_start": 0, "perceptual_weight": 0, "disc_ndf": 8, "disc_num_layers": 2}
    return LPIPSWithDiscriminator(**arguments | changes)


def vq_loss(**changes):
    arguments = {"disc_start": 0, "perceptual_weight": 0, "disc_ndf": 8, "disc_num_layers": 2}
    return VQLPIPSWithDiscriminator(**arguments | changes)


COSTS = {kl_loss: torch.tensor([3.0, 4.0]), vq_loss: torch.tensor(0.25)}
FAMILY = pytest.mark.parametrize("make", list(COSTS), ids=["kl", "vq"])


@FAMILY
def test_perfect_reconstruction_costs_nothing(make):
    images = torch.randn(2, 3, 32, 32)
    terms = make().reconstruction(images, images)
    assert torch.equal(terms.total, torch.zeros(2))


@FAMILY
def test_terms_are_per_example(make):
    loss = make().eval()
    images = torch.randn(2, 2, 3, 32, 32)
    both = loss.reconstruction(*images)
    one = loss.reconstruction(images[0][1:], images[1][1:])
    torch.testing.assert_close(both.total[1:], one.total)
    for name, value in both.parts.items():
        torch.testing.assert_close(value[1:], one.parts[name])


@FAMILY
def test_objective_is_the_sum_of_its_pieces(make):
    loss = make(disc_weight=0.5, disc_factor=0.75).eval()
    inputs, features = torch.randn(2, 3, 32, 32), torch.randn(2, 8, 32, 32)
    last = torch.randn(3, 8, 3, 3, requires_grad=True)
    reconstructions = F.conv2d(features, last, padding=1)
    cost = COSTS[make]
    whole = loss.objective(inputs, reconstructions, cost, step=1, last_layer=last)
    expected = (
        loss.reconstruction(inputs, reconstructions).total
        + loss.regularization(cost).total
        + whole.parts["d_weight"] * 0.75 * loss.deception(loss.judge(reconstructions))
    )
    torch.testing.assert_close(whole.total, expected)


@FAMILY
def test_game_begins_at_disc_start(make):
    loss = make(disc_start=10, disc_factor=0.5)
    assert [loss.factor(step) for step in (0, 9, 10, 11)] == [0.0, 0.0, 0.5, 0.5]
    logits = torch.randn(2, 2, 1, 3, 3)
    assert torch.equal(loss.discrimination(*logits, step=9).total, torch.zeros(2))


@FAMILY
def test_perceptual_network_is_built_only_when_it_has_a_weight(make):
    assert make().perceptual_loss is None
    assert isinstance(make(perceptual_weight=1.0).perceptual_loss, LPIPS)


def test_log_variance_is_learned_only_on_request():
    assert kl_loss().generator_parameters() == []
    loss = kl_loss(learn_logvar=True)
    assert loss.generator_parameters() == [loss.logvar]


def test_learned_log_variance_is_optimal_at_the_log_of_the_error():
    images = torch.randn(2, 1, 3, 16, 16)
    error = (images[0] - images[1]).abs().mean()
    loss = kl_loss(logvar_init=float(error.log()))
    loss.reconstruction(*images).total.mean().backward()
    # the slope per number of the image is 1 - error / exp(logvar)
    assert abs(loss.logvar.grad / images[0].numel()) < 1e-5


def test_conditional_discriminator_asks_for_its_condition():
    loss = kl_loss(disc_conditional=True, disc_in_channels=5)
    images = torch.randn(2, 3, 32, 32)
    assert loss.judge(images, torch.randn(2, 2, 32, 32)).shape[:2] == (2, 1)
    with pytest.raises(ValueError, match="condition was missing"):
        loss.judge(images)
    with pytest.raises(ValueError, match="condition was given"):
        kl_loss().judge(images, images)


@pytest.mark.parametrize("make", [kl_loss, vq_loss])
def test_lpips_of_images_with_many_channels_needs_a_choice(make):
    many = {"disc_in_channels": 13, "perceptual_weight": 1.0}
    with pytest.raises(ValueError, match=r"disc_in_channels=13: .* got 13.*lpips_channels"):
        make(**many)
    with pytest.raises(ValueError, match=r"lpips_channels=\[0, 1, 13\]: images have 13 channels"):
        make(**many, lpips_channels=[0, 1, 13])
    for choice in ([3, 2, 1], "each"):
        make(**many, lpips_channels=choice).require_channels(13)
    make(disc_in_channels=13, perceptual_weight=0).require_channels(13)


def test_lpips_is_not_held_against_a_discriminator_that_sees_a_condition():
    loss = kl_loss(disc_conditional=True, disc_in_channels=5, perceptual_weight=1.0)
    loss.require_channels(3)
    with pytest.raises(ValueError, match="disc_in_channels: 5, expected 6"):
        loss.require_channels(6)


@pytest.mark.parametrize("count", [1, 4])
def test_a_discriminator_of_other_channels_is_named(count):
    with pytest.raises(ValueError, match=rf"disc_in_channels: 3, expected {count}"):
        kl_loss().require_channels(count)


def test_other_perceptual_networks_are_an_error():
    with pytest.raises(ValueError, match="perceptual_loss='clips'"):
        vq_loss(perceptual_loss="clips")


@FAMILY
def test_training_without_perceptual_weights_is_an_error(make, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    make().require_weights()
    with pytest.raises(ValueError, match="LPIPS has no weights"):
        make(perceptual_weight=1.0).require_weights()


@pytest.mark.parametrize("cls", [LPIPSWithDiscriminator, VQLPIPSWithDiscriminator])
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"disc_weigth": 1.0}, "got no 'disc_weigth'; did you mean 'disc_weight'?"),
        ({"r1_wieght": 1.0}, "got no 'r1_wieght'; did you mean 'r1_weight'?"),
        ({"disc_num_layers": 0}, "disc_num_layers: expected int >= 1, got 0"),
    ],
)
def test_arguments_that_both_objectives_take_are_checked(cls, params, message):
    (problem,) = parameter_problems(cls, {"disc_start": 0, **params}, stage="file")
    assert message in problem
