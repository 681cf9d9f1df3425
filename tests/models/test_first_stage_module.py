"""A first stage under the trainer: what counts as a step, what is logged, what is refused."""

import csv

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader

from ldm.autoencoders.base import FirstStage
from ldm.config import ConfigError
from ldm.data.module import collate
from ldm.losses.perceptual import LPIPS
from ldm.models.autoencoder import AutoencoderKL, IdentityFirstStage
from tests.models.first_stages import FAMILY, NETWORK, Images, tiny_kl, tiny_vq

pytestmark = [
    # Lightning's advice for real trainings
    pytest.mark.filterwarnings("ignore:.*number of training batches.*is smaller than the logging"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
KINDS = pytest.mark.parametrize("kind", list(FAMILY))


def loader(length=8, batch_size=2):
    return DataLoader(Images(length), batch_size=batch_size, collate_fn=collate)


def trainer(tmp_path, **changes):
    arguments = {
        "accelerator": "cpu",
        "default_root_dir": tmp_path,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return pl.Trainer(**arguments | changes)


def rows(directory, column):
    """(step, value) of a logged metric, each once."""
    with open(directory / "metrics.csv", newline="") as file:
        found = [
            (int(row["step"]), float(row[column]))
            for row in csv.DictReader(file)
            if row.get(column)
        ]
    return list(dict.fromkeys(found))


class Probe(pl.Callback):
    """Remembers what each player's optimizer was about to do."""

    def __init__(self):
        self.norms = {"generator": [], "discriminator": []}

    def on_before_optimizer_step(self, trainer, module, optimizer):
        parameters = optimizer.param_groups[0]["params"]
        is_generator = any(p is module.get_last_layer() for p in parameters)
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        self.norms["generator" if is_generator else "discriminator"].append(float(norm))


# steps


@KINDS
@pytest.mark.filterwarnings("ignore:.*barebones=True")
def test_a_trainer_that_logs_nothing_trains(kind):
    run = pl.Trainer(accelerator="cpu", max_steps=2, barebones=True)
    run.fit(FAMILY[kind](), loader())
    assert run.global_step == 2


@pytest.mark.slow
@KINDS
def test_max_steps_counts_updates_of_the_generator(kind, tmp_path):
    model, probe = FAMILY[kind]({"disc_start": 2}), Probe()
    run = trainer(tmp_path, max_steps=5, callbacks=[probe])
    run.fit(model, loader())
    assert run.global_step == 5
    assert len(probe.norms["generator"]) == 5
    assert len(probe.norms["discriminator"]) == 3  # it joins at step 2


@pytest.mark.slow
def test_accumulated_batches_count_as_one_step(tmp_path):
    model, probe = tiny_kl({"disc_start": 1}), Probe()
    model.accumulate_grad_batches = 2
    run = trainer(tmp_path, max_steps=4, callbacks=[probe])
    run.fit(model, loader(length=10))
    assert run.global_step == 4
    # five batches an epoch make three steps: two pairs, and the last one alone
    assert run.fit_loop.epoch_loop.batch_progress.current.completed == 2
    assert len(probe.norms["discriminator"]) == 3


@pytest.mark.slow
@KINDS
def test_gradients_of_each_player_are_clipped(kind, tmp_path):
    model, probe = FAMILY[kind](), Probe()
    model.gradient_clip_val = 1e-3
    trainer(tmp_path, max_steps=2, callbacks=[probe]).fit(model, loader())
    for norms in probe.norms.values():
        assert norms == pytest.approx([1e-3] * 2, rel=1e-2)


@pytest.mark.slow
def test_learning_rates_follow_the_schedule_of_each_player(tmp_path):
    schedule = {
        "target": "ldm.lr_scheduler.LambdaLinearScheduler",
        "params": {
            "warm_up_steps": [4],
            "cycle_lengths": [100],
            "f_start": [0.0],
            "f_max": [1.0],
            "f_min": [1.0],
        },
    }
    model = tiny_vq({"disc_start": 2}, scheduler_config=schedule, lr_g_factor=3.0)
    model.learning_rate = 1e-3
    run = trainer(tmp_path, max_steps=3)
    run.fit(model, loader())
    generator, discriminator = (o.param_groups[0]["lr"] for o in run.optimizers)
    assert generator == pytest.approx(3 * 1e-3 * 3 / 4)
    assert discriminator == pytest.approx(1e-3 * 1 / 4)  # it made one step


@pytest.mark.slow
def test_log_variance_moves_only_when_it_is_learned(tmp_path):
    for learn in (False, True):
        model = tiny_kl({"learn_logvar": learn})
        model.learning_rate = 1e-2
        trainer(tmp_path, max_steps=1).fit(model, loader())
        assert (model.loss.logvar.item() != 0) == learn


@pytest.mark.slow
@KINDS
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(kind, tmp_path):
    def fit(max_epochs, **fit_arguments):
        model = FAMILY[kind]({"disc_start": 3}, use_ema=True)
        run = trainer(tmp_path, max_epochs=max_epochs)
        run.fit(model, loader(), **fit_arguments)
        return run, model

    _, whole = fit(max_epochs=2)
    run, _ = fit(max_epochs=1)
    run.save_checkpoint(tmp_path / "half.ckpt")
    resumed_run, resumed = fit(max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert resumed_run.global_step == 8
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_steps_without_balance_are_still_counted_after_a_resume(tmp_path):
    model, other, published = tiny_kl(), tiny_kl(), {"state_dict": {}}
    model.loss.balance(torch.tensor([torch.nan]), torch.ones(1))
    checkpoint = {}
    model.on_save_checkpoint(checkpoint)
    for given in (checkpoint, published):
        other.on_load_checkpoint(given)
        assert other.loss.num_unbalanced == 1


# noise


def test_noise_of_an_image_does_not_depend_on_its_batch():
    model = tiny_kl()
    whole = collate([Images(8)[i] for i in (3, 5)])
    alone = collate([Images(8)[i] for i in (5,)])
    noise = [
        model._micro_batch(b, step=4).draws.normal((3, 8, 8), "posterior") for b in (whole, alone)
    ]
    assert torch.equal(noise[0][1], noise[1][0])


def test_images_without_ids_get_noise_of_their_own():
    model = tiny_kl()
    batch = {"image": torch.zeros(2, 16, 16, 3)}
    model._held = [model._micro_batch(batch, step=0)]
    noise = [
        row
        for b in (model._held[0], model._micro_batch(batch, step=0))
        for row in b.draws.normal((3, 8, 8), "posterior")
    ]
    assert len({tuple(row.flatten().tolist()) for row in noise}) == 4


# logs


@pytest.mark.slow
@KINDS
def test_training_logs_published_names_at_their_steps(kind, tmp_path):
    model = FAMILY[kind]({"disc_start": 1})
    model.accumulate_grad_batches = 2
    run = trainer(tmp_path, max_steps=4, logger=CSVLogger(tmp_path, name="", version=""))
    run.fit(model, loader())
    for name in ("total_loss", "nll_loss", "rec_loss", "disc_factor"):
        assert [step for step, _ in rows(tmp_path, f"train/{name}")] == [0, 1, 2, 3]
    for name in ("d_weight", "g_loss", "disc_loss", "logits_real", "logits_fake"):
        assert [step for step, _ in rows(tmp_path, f"train/{name}")] == [1, 2, 3]
    assert rows(tmp_path, "train/disc_factor") == [(0, 0.0), (1, 1.0), (2, 1.0), (3, 1.0)]


@KINDS
def test_validation_is_deterministic_and_logs_published_names(kind, tmp_path):
    model = FAMILY[kind]({"disc_start": 1}).eval()
    run = trainer(tmp_path)
    first, second = (run.validate(model, loader(), verbose=False)[0] for _ in range(2))
    assert first == second
    names = {"rec_loss", "nll_loss", "total_loss", "aeloss", "psnr", "latent_std"}
    own = {"kl": {"kl_loss", "logvar"}, "vq": {"quant_loss", "perplexity", "cluster_usage"}}
    assert {f"val/{name}" for name in names | own[kind]} <= first.keys()
    images = model.get_input(collate([Images(8)[i] for i in range(8)]))
    with torch.no_grad():
        made = model.autoencode(images, None).reconstruction
    error = (images - made).abs().mean()
    assert first["val/rec_loss"] == pytest.approx(float(error), rel=1e-5)


def test_validation_of_the_average_has_names_of_its_own(tmp_path):
    model = tiny_kl({"disc_start": 100}, use_ema=True)
    with torch.no_grad():
        model.decoder.conv_out.bias.add_(0.5)
    metrics = trainer(tmp_path).validate(model, loader(), verbose=False)[0]
    assert metrics["val/rec_loss"] != metrics["val_ema/rec_loss"]
    before = tiny_kl({"disc_start": 100})
    assert metrics["val_ema/rec_loss"] == pytest.approx(
        trainer(tmp_path).validate(before, loader(), verbose=False)[0]["val/rec_loss"]
    )


@pytest.mark.slow
def test_average_takes_in_each_step(tmp_path):
    model = tiny_kl(use_ema=True)
    model.accumulate_grad_batches = 2
    trainer(tmp_path, max_steps=3).fit(model, loader())
    assert model.model_ema.num_updates == 3


# refusals


def test_model_without_an_objective_cannot_be_trained(tmp_path):
    model = AutoencoderKL({**NETWORK, "double_z": True}, torch.nn.Identity(), embed_dim=3)
    with pytest.raises(ConfigError, match="lossconfig: Identity is no training objective"):
        trainer(tmp_path, max_steps=1).fit(model, loader())


def test_training_without_perceptual_weights_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    model = tiny_kl()
    model.loss.perceptual_loss = LPIPS()
    with pytest.raises(ConfigError, match=r"vgg16-397923af\.pth.*perceptual_weight: 0"):
        trainer(tmp_path, max_steps=1).fit(model, loader())


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "64-true"])
def test_precision_without_float32_weights_is_refused(precision, tmp_path):
    with pytest.raises(ConfigError, match=f"precision={precision}.*bf16-mixed"):
        trainer(tmp_path, max_steps=1, precision=precision).fit(tiny_kl(), loader())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny_kl(gan_forward="both"), "gan_forward='both'.*'shared' or 'published'"),
        (lambda: tiny_kl(lr_g_facto=1.0), "lr_g_facto: unknown option.*lr_g_factor"),
        (lambda: tiny_kl(network={"double_z": False}), r"ddconfig\.double_z"),
        (lambda: tiny_vq(network={"double_z": True}), r"ddconfig\.double_z"),
        (lambda: tiny_kl(network={"ch_mul": [1]}), r"ddconfig\.ch_mul: .*'ch_mult'"),
        (lambda: AutoencoderKL({"ch": 32}, None, 3), r"ddconfig\.out_ch: .* need it"),
        (lambda: tiny_kl(network={"num_res_blocks": 0}), r"ddconfig\.num_res_blocks: .*>= 1"),
    ],
    ids=["gan_forward", "option", "kl double_z", "vq double_z", "misspelt", "missing", "range"],
)
def test_wrong_configuration_is_an_error(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


# weights to start from


def test_checkpoint_brings_networks_and_what_fits_of_the_loss(tmp_path):
    source = tiny_kl({"disc_num_layers": 2})
    torch.save({"state_dict": source.state_dict()}, tmp_path / "first.ckpt")
    other = tiny_kl(ckpt_path=str(tmp_path / "first.ckpt"))
    torch.nn.init.zeros_(other.decoder.conv_out.weight)
    other.init_from_ckpt(tmp_path / "first.ckpt")
    assert torch.equal(other.decoder.conv_out.weight, source.decoder.conv_out.weight)


def test_checkpoint_with_a_loss_serves_a_model_without_one(tmp_path):
    torch.save({"state_dict": tiny_kl().state_dict()}, tmp_path / "first.ckpt")
    network = {**NETWORK, "double_z": True}
    AutoencoderKL(network, torch.nn.Identity(), 3, ckpt_path=str(tmp_path / "first.ckpt"))


def test_ignored_names_keep_their_own_weights(tmp_path):
    source = tiny_kl()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "first.ckpt")
    other = tiny_kl()
    torch.nn.init.zeros_(other.decoder.conv_out.weight)
    torch.nn.init.zeros_(other.encoder.conv_in.weight)
    other.init_from_ckpt(tmp_path / "first.ckpt", ignore_keys=["decoder."])
    assert not other.decoder.conv_out.weight.any()
    assert torch.equal(other.encoder.conv_in.weight, source.encoder.conv_in.weight)


def test_checkpoint_of_another_model_is_an_error(tmp_path):
    torch.save({"state_dict": tiny_vq().state_dict()}, tmp_path / "vq.ckpt")
    with pytest.raises(ConfigError, match="does not fit AutoencoderKL"):
        tiny_kl(ckpt_path=str(tmp_path / "vq.ckpt"))


# images


@KINDS
def test_images_to_look_at_have_the_form_of_images(kind):
    model = FAMILY[kind]().eval()
    batch = collate([Images(4)[i] for i in range(3)])
    shown = model.log_images(batch)
    assert {"inputs", "reconstructions"} <= shown.keys()
    assert {value.shape for value in shown.values()} == {(3, 3, 16, 16)}
    assert model.log_images(batch, only_inputs=True).keys() == {"inputs"}


def test_label_maps_are_shown_in_colours_within_range():
    network = {**NETWORK, "in_channels": 5, "out_ch": 5, "double_z": True}
    model = AutoencoderKL(network, torch.nn.Identity(), 3, colorize_nlabels=5)
    labels = torch.randint(5, (2, 16, 16))
    shown = model.log_images({"image": torch.nn.functional.one_hot(labels, 5).float()})
    for value in shown.values():
        assert value.shape == (2, 3, 16, 16)
        assert value.min() >= -1
        assert value.max() <= 1


def test_images_are_resized_to_a_size_that_all_ranks_draw_alike():
    ranks = [tiny_vq(batch_resize_range=[16, 64]) for _ in range(2)]
    images = torch.zeros(1, 3, 32, 32)
    sizes, others = ([rank._resized(images, n).shape[-1] for n in range(60)] for rank in ranks)
    assert sizes == others
    assert set(sizes[:5]) == {64}
    assert set(sizes[5:]) == {16, 32, 48, 64}


# as a first stage


@pytest.mark.parametrize("make", [tiny_kl, tiny_vq, IdentityFirstStage])
def test_every_first_stage_keeps_its_protocol(make):
    assert isinstance(make(), FirstStage)


@KINDS
def test_downsampling_factor_and_channels_are_those_of_the_latent(kind):
    model = FAMILY[kind]().eval()
    made = model.autoencode(torch.zeros(1, 3, 32, 16), None)
    factor = model.downsample_factor
    assert made.z.shape == (1, model.latent_channels, 32 // factor, 16 // factor)


def test_identity_first_stage_changes_nothing():
    images = torch.randn(1, 3, 4, 4)
    stage = IdentityFirstStage(vq_interface=True)
    assert stage.decode(stage.encode(images)) is images
    assert stage.quantize(images)[0] is images
    assert IdentityFirstStage().quantize(images) is images


def test_codes_are_numbered_among_those_in_use(tmp_path):
    np.save(tmp_path / "used.npy", np.arange(0, 16, 2))
    model = tiny_vq(remap=str(tmp_path / "used.npy")).eval()
    with torch.no_grad():
        codes = model.autoencode(torch.randn(2, 3, 16, 16), None).codes
    assert codes.max() < 8
    with pytest.raises(ConfigError, match=r"remap: there is no file .*none\.npy"):
        tiny_vq(remap=str(tmp_path / "none.npy"))


def test_codes_decode_to_the_image_of_their_latents():
    model = tiny_vq(sane_index_shape=True).eval()
    with torch.no_grad():
        made = model.autoencode(torch.randn(2, 3, 16, 16), None)
        torch.testing.assert_close(model.decode_code(made.codes), made.reconstruction)
