"""A first stage's later objectives in whole steps: what learns, what stays, what is logged."""

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader

from ldm.autoencoders.posterior import DiagonalGaussian
from ldm.config import ConfigError
from ldm.data.module import collate
from ldm.diffusion.draws import KeyedDraws
from ldm.losses.equivariance import Equivariance, Transform
from ldm.models.first_stage_step import (
    MicroBatch,
    discriminator_gradients,
    generator_gradients,
    shared_gradients,
)
from ldm.models.first_stage_validation import latent_moments
from tests.models.first_stages import FAMILY, Images, tiny_kl, tiny_vq
from tests.models.test_first_stage_module import loader, rows, trainer
from tests.models.test_first_stage_step import assert_equal_gradients, gradients

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*number of training batches.*is smaller than the logging"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
KINDS = pytest.mark.parametrize("kind", list(FAMILY))
RULES = {
    "non-saturating": {"disc_loss": "non-saturating"},
    "spectral norm": {"disc_spectral_norm": True},
    "r1": {"r1_weight": 0.5, "r1_every": 2},
    "r1 and spectral norm": {"r1_weight": 0.5, "r1_every": 2, "disc_spectral_norm": True},
    "lecam": {"lecam_weight": 0.1},
    "augmentation": {"disc_augment": ["color", "translation", "cutout"]},
    "fixed weight": {"adaptive": False, "disc_weight": 0.3},
}


def keyed_batches(*sizes, transform=None, side=16):
    """The first images of one sequence, with noise and all else that is drawn."""
    total = sum(sizes)
    images = torch.rand(total, 3, side, side, generator=torch.Generator().manual_seed(5)) * 2 - 1
    keys = torch.arange(total).split(sizes)
    return [
        MicroBatch(x, KeyedDraws(k.tolist(), seed=1, step=2), transform)
        for x, k in zip(images.split(sizes), keys, strict=True)
    ]


def seeded(make, *arguments, **options):
    """A model whose power iterations begin with the same vectors each time."""
    torch.manual_seed(0)
    return make(*arguments, **options)


# rules of the game


@KINDS
@pytest.mark.parametrize("rule", list(RULES))
def test_micro_batches_count_as_the_batch_they_make_up_under_every_rule(kind, rule):
    model = seeded(FAMILY[kind], RULES[rule])
    logged, want = shared_gradients(model, keyed_batches(4), step=2), gradients(model)
    model = seeded(FAMILY[kind], RULES[rule])
    parts = shared_gradients(model, keyed_batches(1, 3), step=2)
    assert parts.keys() == logged.keys()
    for name, value in logged.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6)
    assert_equal_gradients(gradients(model), want, rtol=1e-5)


@pytest.mark.parametrize("rule", list(RULES))
def test_every_rule_changes_the_step(rule):
    published, model = tiny_kl(), tiny_kl(RULES[rule])
    for each in (published, model):
        shared_gradients(each, keyed_batches(2), step=2)
    name = "loss.discriminator.main.0.bias" if rule != "fixed weight" else "decoder.conv_out.weight"
    assert not torch.allclose(gradients(published)[name], gradients(model)[name], rtol=1e-3)


@pytest.mark.parametrize("rule", ["r1", "lecam", "augmentation", "spectral norm"])
def test_published_step_knows_the_rules(rule):
    model = tiny_kl(RULES[rule], gan_forward="published")
    generator_gradients(model, keyed_batches(2), step=2)
    metrics = discriminator_gradients(model, keyed_batches(2), step=2)
    for name in {"r1", "lecam"} & {rule}:
        assert metrics[name] > 0
    assert all(torch.isfinite(g).all() for g in gradients(model).values())


@KINDS
def test_published_step_augments_what_both_players_learn_from(kind):
    found, rule = [], RULES["augmentation"]
    for rules, step in (
        (rule, generator_gradients),
        (rule, shared_gradients),
        ({}, generator_gradients),
    ):
        model = FAMILY[kind](rules)
        step(model, keyed_batches(3), step=2)
        found.append({k: v for k, v in gradients(model).items() if "discriminator" not in k})
    published, shared, plain = found
    assert_equal_gradients(published, shared, rtol=2e-6)
    name = "decoder.conv_out.weight"
    assert not torch.allclose(published[name], plain[name], rtol=1e-3)


def test_only_the_discriminator_learns_from_the_game_while_it_warms_up():
    before, during = tiny_kl({"disc_start": 10}), tiny_kl({"disc_start": 2, "disc_warmup": 3})
    shared_gradients(before, keyed_batches(2), step=2)
    metrics = shared_gradients(during, keyed_batches(2), step=2)
    want, got = gradients(before), gradients(during)
    assert metrics["disc_factor"] == 0
    assert "d_weight" not in metrics
    assert all(torch.equal(got[name], value) for name, value in want.items())
    assert got["loss.discriminator.main.0.weight"].abs().max() > 0
    assert "loss.discriminator.main.0.weight" not in want
    assert shared_gradients(during, keyed_batches(2), step=5)["d_weight"] > 0


@pytest.mark.parametrize("rule", [{}, RULES["fixed weight"]], ids=["adaptive", "fixed"])
@pytest.mark.parametrize("sizes", [(2,), (1, 1)])
def test_game_whose_gradient_is_not_finite_leaves_the_autoencoder_its_own(rule, sizes, monkeypatch):
    model = tiny_kl(rule)
    monkeypatch.setattr(model.loss, "disc_deception", lambda fake: fake.mean(dim=(1, 2, 3)) / 0.0)
    metrics = shared_gradients(model, keyed_batches(*sizes), step=2)
    assert metrics["d_weight"] == 0
    assert metrics["d_weight_nonfinite"] == 1
    got = {k: v for k, v in gradients(model).items() if "discriminator" not in k}
    plain = tiny_kl({"disc_start": 10})
    without = shared_gradients(plain, keyed_batches(*sizes), step=2)
    assert_equal_gradients(got, gradients(plain), rtol=1e-6)
    torch.testing.assert_close(metrics["total_loss"], without["total_loss"])


def test_game_that_is_finite_keeps_its_fixed_weight():
    model = tiny_kl(RULES["fixed weight"])
    metrics = shared_gradients(model, keyed_batches(2), step=2)
    assert metrics["d_weight"] == pytest.approx(0.3)
    assert metrics["d_weight_nonfinite"] == 0


def test_r1_in_bfloat16_is_that_in_float32():
    values = []
    for kind in (torch.float32, torch.bfloat16):
        model = tiny_kl({**RULES["r1"], "disc_start": 0})
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
            values.append(shared_gradients(model, keyed_batches(2), step=2)["r1"])
        assert all(g.dtype == torch.float32 for g in gradients(model).values())
    torch.testing.assert_close(*values)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo's
@pytest.mark.slow
def test_r1_goes_past_compiled_networks(monkeypatch):
    model = seeded(tiny_kl, RULES["r1 and spectral norm"])
    shared_gradients(model, keyed_batches(2), step=2)
    want, model = gradients(model), seeded(tiny_kl, RULES["r1 and spectral norm"])
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda module, **options: compile_module(module, backend="aot_eager", **options),
    )
    model.compile_networks()
    shared_gradients(model, keyed_batches(2), step=2)
    assert_equal_gradients(gradients(model), want, rtol=1e-5)


# equivariance


@KINDS
def test_transform_that_changes_nothing_is_the_plain_step_bit_for_bit(kind):
    model = FAMILY[kind]()
    shared_gradients(model, keyed_batches(2), step=0)
    want, model = gradients(model), FAMILY[kind]()
    shared_gradients(model, keyed_batches(2, transform=Transform(1.0, 0, 2)), step=0)
    got = gradients(model)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], value) for name, value in want.items())


@KINDS
@pytest.mark.slow
def test_equivariance_of_no_probability_is_the_plain_training_bit_for_bit(kind, tmp_path):
    states = []
    for options in ({}, {"equivariance": {"p": 0.0, "scales": [0.5, 1.0]}}):
        model = FAMILY[kind]({"disc_start": 1}, **options)
        trainer(tmp_path, max_steps=3).fit(model, loader())
        states.append(model.state_dict())
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())


@KINDS
@pytest.mark.parametrize("sizes", [(4,), (1, 3)])
def test_transformed_latents_are_decoded_and_compared_with_transformed_images(kind, sizes):
    transform = Transform(0.5, 1, 2)
    model = FAMILY[kind]()
    metrics = shared_gradients(model, keyed_batches(*sizes, transform=transform), step=0)
    (whole,) = keyed_batches(4)
    with torch.no_grad():
        z = model.autoencode(whole.images, whole.draws).z
        error = model.decode(transform.of_latents(z)) - transform.of_images(whole.images)
    assert error.shape[2:] == (8, 8)
    torch.testing.assert_close(metrics["rec_loss"], error.abs().mean(), rtol=1e-5, atol=1e-6)


def test_transform_of_a_step_is_the_same_on_all_ranks_and_micro_batches():
    models = [tiny_kl(equivariance={"p": 0.5, "scales": [0.5, 1.0]}) for _ in range(2)]
    images = torch.zeros(1, 3, 16, 16)
    drawn = [[model._transform(images, step) for step in range(20)] for model in models]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 5


def test_images_too_small_for_the_discriminator_are_an_error_with_the_way_out():
    model = tiny_kl({"disc_num_layers": 2}, equivariance={})
    with pytest.raises(
        ConfigError,
        match=r"equivariance\.scales: the lowest, 0.25.*16 pixels 4 .* need 12; take 0.75",
    ):
        model._transform(torch.zeros(1, 3, 16, 16), step=0)
    model._transform(torch.zeros(1, 3, 64, 64), step=0)


def test_images_too_small_for_lpips_are_an_error():
    model = tiny_kl({"perceptual_weight": 1.0}, equivariance={})
    with pytest.raises(ConfigError, match="need 16"):
        model._transform(torch.zeros(1, 3, 32, 32), step=0)


def test_equivariance_is_given_by_arguments_target_or_object():
    target = "ldm.losses.equivariance.Equivariance"
    for given in (
        {"p": 0.25},
        {"target": target, "params": {"p": 0.25}},
        Equivariance(0.25),
    ):
        assert tiny_kl(equivariance=given).equivariance.p == 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"equivariance": {"q": 1}}, "equivariance.q: .*'q'"),
        ({"equivariance": {"p": 2}}, "equivariance.p: 2; expected a probability"),
        ({"equivariance": {"p": "often"}}, "equivariance.p: expected float"),
        ({"equivariance": 0.5}, "equivariance: 0.5; expected p, scales"),
        ({"train_only": "encoder"}, "train_only='encoder': expected 'decoder'"),
        ({"train_only": "decoder", "gan_forward": "published"}, "train_only: 'decoder', but"),
    ],
)
def test_wrong_options_are_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        tiny_kl(**options)


# the decoder alone


@pytest.mark.slow
@KINDS
def test_latents_do_not_move_when_the_decoder_alone_is_trained(kind, tmp_path):
    source = FAMILY[kind]()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "first.ckpt")
    model = FAMILY[kind](
        network={"dropout": 0.5},
        train_only="decoder",
        use_ema=True,
        ckpt_path=str(tmp_path / "first.ckpt"),
    )
    model.learning_rate = 1e-2
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        want = source.eval().autoencode(images, None)
    run = trainer(tmp_path, max_steps=3, log_every_n_steps=1)
    run.fit(model, loader())
    cost = "train/kl_loss" if kind == "kl" else "train/quant_loss"
    assert torch.isfinite(run.callback_metrics[cost])  # a constant, but logged
    with torch.no_grad():
        got = model.eval().autoencode(images, None)
        averaged = model.model_ema.module["decoder"].conv_out.weight
    assert torch.equal(got.z, want.z)
    assert not torch.equal(got.reconstruction, want.reconstruction)
    assert not torch.equal(averaged, source.decoder.conv_out.weight)
    learned = {n for n, p in model.networks().named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in learned} == {"decoder", "post_quant_conv"}
    for name in learned:
        assert not torch.equal(
            model.networks().state_dict()[name], source.networks().state_dict()[name]
        ), name


def test_what_is_frozen_stays_in_eval_mode():
    model = tiny_vq(train_only="decoder").train()
    modes = {name: network.training for name, network in model.networks().items()}
    assert [name for name, training in modes.items() if training] == ["decoder", "post_quant_conv"]
    assert all(network.training for network in tiny_vq().train().networks().values())


@pytest.mark.slow
def test_decoder_of_an_encoder_as_it_was_drawn_is_warned_about(tmp_path, caplog_ldm):
    trainer(tmp_path, max_steps=1).fit(tiny_kl(train_only="decoder"), loader())
    assert "train_only: decoder, but no ckpt_path" in caplog_ldm.text


# the average


@pytest.mark.slow
@KINDS
def test_average_is_validated_saved_and_restored_in_the_game(kind, tmp_path):
    model = FAMILY[kind]({"disc_start": 1}, use_ema=True)
    model.learning_rate = 1e-3
    run = trainer(tmp_path, max_steps=4)
    run.fit(model, loader(), loader())
    assert run.callback_metrics["train/disc_loss"] > 0
    run.save_checkpoint(tmp_path / "game.ckpt")
    other = FAMILY[kind]({"disc_start": 1}, use_ema=True)
    (found,) = trainer(tmp_path).validate(
        other, loader(), ckpt_path=tmp_path / "game.ckpt", verbose=False
    )
    assert other.model_ema._updates == 4
    averaged = FAMILY[kind]({"disc_start": 1})
    averaged.networks().load_state_dict(model.model_ema.module.state_dict())
    averaged.loss.load_state_dict(model.loss.state_dict())
    (want,) = trainer(tmp_path).validate(averaged, loader(), verbose=False)
    (tested,) = trainer(tmp_path).test(other, loader(), verbose=False)
    for name in ("rec_loss", "psnr", "ssim", "latent_std"):
        assert found[f"val_ema/{name}"] == pytest.approx(want[f"val/{name}"], rel=1e-5), name
        assert tested[f"test_ema/{name}"] == pytest.approx(want[f"val/{name}"], rel=1e-5), name
        assert found[f"val_ema/{name}"] != found[f"val/{name}"]


# logs


@pytest.mark.slow
@pytest.mark.parametrize(("clip", "algorithm"), [(1e-3, "norm"), (1e-3, "value"), (None, "norm")])
def test_gradient_norms_of_both_players_are_those_before_clipping(clip, algorithm, tmp_path):
    model = tiny_kl({"disc_start": 0, "r1_weight": 1.0, "r1_every": 1, "lecam_weight": 0.1})
    model.gradient_clip_val, model.gradient_clip_algorithm = clip, algorithm
    run = trainer(tmp_path, max_steps=1)
    run.fit(model, loader())
    twin = tiny_kl({"disc_start": 0, "r1_weight": 1.0, "r1_every": 1, "lecam_weight": 0.1})
    batch = next(iter(loader()))
    shared_gradients(twin, [twin._micro_batch(batch, 0)], step=0)
    norms = {"autoencoder": 0.0, "discriminator": 0.0}
    for name, gradient in gradients(twin).items():
        norms["discriminator" if "discriminator" in name else "autoencoder"] += float(
            gradient.double().square().sum()
        )
    for player, square in norms.items():
        got = run.callback_metrics[f"train/grad_norm/{player}"]
        assert got == pytest.approx(square**0.5, rel=1e-4)
    for name in ("r1", "lecam", "d_weight", "logits_real", "logits_fake", "d_weight_nonfinite"):
        assert torch.isfinite(run.callback_metrics[f"train/{name}"])


@pytest.mark.slow
def test_gradient_norms_without_clipping_are_taken_when_a_log_is_due(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    run = trainer(tmp_path, max_steps=6, logger=logger, log_every_n_steps=3)
    taken, model = [], tiny_kl()
    move = model._move
    model._move = lambda *given: taken.append(result := move(*given)) or result
    run.fit(model, loader(length=20))
    assert [bool(each) for each in taken] == [False] * 4 + [True] * 2 + [False] * 4 + [True] * 2
    for player in ("autoencoder", "discriminator"):
        assert [s for s, _ in rows(tmp_path, f"train/grad_norm/{player}")] == [2, 5]


def test_moments_of_few_channels_are_named_and_of_many_summed_up():
    z = torch.randn(4, 16, 3, 3) * torch.arange(1.0, 17.0)[:, None, None]
    found = latent_moments(z)
    assert len(found) == 1 + 2 * 16
    torch.testing.assert_close(found["latent_mean_3"], z[:, 3].mean())
    torch.testing.assert_close(found["latent_std_15"], z[:, 15].std())
    found = latent_moments(torch.cat([z, 40 * z[:, :1]], dim=1))
    names = {f"latent_{what}_{kind}" for what in ("mean", "std") for kind in ("mean", "min", "max")}
    assert found.keys() == names | {"latent_std"}
    torch.testing.assert_close(found["latent_std_max"], 40 * z[:, 0].std())


def test_validation_logs_fidelity_and_kl_in_nats_per_image(tmp_path):
    model = tiny_kl({"perceptual_weight": 1.0}).eval()
    run = trainer(tmp_path)
    data = DataLoader(Images(2, side=32), batch_size=2, collate_fn=collate)
    (found,) = run.validate(model, data, verbose=False)
    names = {"psnr", "ssim", "lpips", "latent_mean_0", "latent_std_2"}
    assert {f"val/{name}" for name in names} <= found.keys()
    assert found["val/lpips"] == found["val/p_loss"]
    with torch.no_grad():
        moments = model.quant_conv(model.encoder(model.get_input(next(iter(data)))))
    assert found["val/kl_loss"] == pytest.approx(
        float(DiagonalGaussian(moments).kl().mean()), rel=1e-4
    )
